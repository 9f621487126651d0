"""What a check expects, and what it raises where that does not hold or does not apply."""

from __future__ import annotations

import contextlib
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError, brief

T = TypeVar("T")


class Unmet(Exception):
    """Something does not hold; the check that finds it adds its name.

    Args:
        expected: What must hold.
        got: What was found.
    """

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}; got {got}")
        self.expected = expected
        self.got = str(got)


class Inapplicable(Exception):
    """A check says nothing of this component; the message tells why."""


def told(error: BaseException) -> str:
    """Return the class of an error and what it says, in one line.

    Args:
        error: The error.
    """
    return f"{type(error).__name__}: {brief(error)}"


def stored(component: T) -> T:
    """Return a component that was pickled and read again.

    Args:
        component: The component.

    Raises:
        Inapplicable: Its class is not found by its name, as one inside a function.
    """
    kind = type(component)
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not kind:
        raise Inapplicable(f"pickle does not find {kind.__qualname__} where it is defined")
    return pickle.loads(pickle.dumps(component))


def expect(holds: bool, expected: str, got: object) -> None:
    """Raise unless something holds.

    Args:
        holds: Whether it does.
        expected: What must hold.
        got: What was found.

    Raises:
        Unmet: It does not.
    """
    if not holds:
        raise Unmet(expected, got)


def expect_close(what: str, found: Tensor, wanted: Tensor, rtol: float, atol: float) -> None:
    """Raise unless a tensor has the values, the shape and the type of another.

    Args:
        what: What it is.
        found: The tensor.
        wanted: What it must be.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        Unmet: It has not.
    """
    try:
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise Unmet(f"{what} to be {wanted}", f"{found}: {brief(error)}") from None


def expect_equal(what: str, found: Tensor, wanted: Tensor) -> None:
    """Raise unless two tensors are equal, bit by bit.

    Args:
        what: What they are.
        found: A tensor.
        wanted: What it must be.

    Raises:
        Unmet: They are not.
    """
    expect(torch.equal(found, wanted), f"{what} to be {wanted}", found)


def expect_resumable(
    what: str, train: Callable[[Path, int, bool], list[Tensor]], before: int, steps: int
) -> None:
    """Raise unless a training that a checkpoint parts gives bitwise what an undivided one does.

    Args:
        what: What a tensor is of.
        train: Trains up to a number of steps, from a checkpoint where it is told to, and returns
            what was reached.
        before: Steps before the checkpoint.
        steps: Steps in all.

    Raises:
        Unmet: A tensor differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        whole = train(path, steps, False)
        train(path, before, False)
        resumed = train(path, steps, True)
    for one, other in zip(resumed, whole, strict=True):
        expect_equal(f"a tensor of {what} after a resumed training", one, other)


@contextlib.contextmanager
def expect_error(
    kinds: type[Exception] | tuple[type[Exception], ...], says: str, refusable: bool = False
) -> Iterator[None]:
    """Raise unless the body raises an error that says something.

    Args:
        kinds: Its class, or several.
        says: A pattern that is searched in its message.
        refusable: Whether the component may refuse the combination before it sees the error.

    Raises:
        Unmet: It raises none, or another.
    """
    classes = kinds if isinstance(kinds, tuple) else (kinds,)
    expected = f"{' or '.join(kind.__name__ for kind in classes)} that says {says!r}"
    try:
        yield
    except classes as error:
        expect(re.search(says, str(error)) is not None, expected, told(error))
        return
    except Unmet:
        raise
    except Exception as error:
        if refusable and isinstance(error, UnsupportedError):
            raise
        raise Unmet(expected, told(error)) from error
    raise Unmet(expected, "no error")
