"""Modules of meta-parameters that keep the names of what they belong to in a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metatoolkit.components.patterns import matching


def chosen_parameters(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that require a gradient and match a pattern, by name.

    Args:
        model: Any module.
        patterns: Name patterns, as in :mod:`fnmatch`; ``None`` for all.

    Raises:
        ConfigurationError: A pattern matches no parameter.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if patterns is None:
        return named
    kind = "parameter that requires a gradient"
    return {name: named[name] for name in matching("parameters", patterns, named, kind)}


def attach_at(root: nn.Module, name: str, item: nn.Module | nn.Parameter) -> None:
    """Register a module or a parameter where its dotted name says, with empty modules on the way.

    Args:
        root: Module below which the name holds.
        name: Dotted name, as in ``named_modules()`` or ``named_parameters()`` of a model.
        item: What to register.
    """
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(item, nn.Parameter):
        module.register_parameter(last, item)
    else:
        module.add_module(last, item)
