"""Modes of modules, training or evaluation, that hold while a function runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn

from metatoolkit.stateless.exchange import turn

Modes = list[tuple[nn.Module, bool]]


def modes_of(roots: Sequence[nn.Module]) -> Modes:
    """Return all modules of some, each with whether it is in training mode.

    Args:
        roots: The modules.
    """
    return [(module, module.training) for root in roots for module in root.modules()]


@contextlib.contextmanager
def in_modes(modes: Modes) -> Iterator[None]:
    """Put modules into given modes while the body runs.

    Args:
        modes: Modules, each with whether it shall be in training mode.

    Yields:
        Nothing.
    """
    with turn():
        before = [(module, module.training) for module, _ in modes]
        try:
            for module, training in modes:
                module.training = training
            yield
        finally:
            for module, training in before:
                module.training = training


@contextlib.contextmanager
def in_mode(roots: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """Put modules into training or evaluation mode, as their ``train`` does, while the body runs.

    Args:
        roots: The modules.
        training: Whether it is the training mode.

    Yields:
        Nothing.
    """
    with turn(), in_modes(modes_of(roots)):
        for root in roots:
            root.train(training)
        yield
