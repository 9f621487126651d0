"""Numbers that are read from tensors, which stay tensors while a call is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

Number = float | Tensor
"""A number, which is a 0-d tensor of float64 while a call is traced."""

_noted: ContextVar[list[Tensor] | None] = ContextVar("noted", default=None)


def is_traced() -> bool:
    """Return whether the present call is traced, in which no number is read from a tensor."""
    return _noted.get() is not None


def number(tensor: Tensor) -> Number:
    """Return a number to compute with: read from a tensor, or the tensor while a call is traced.

    Args:
        tensor: 0-d tensor.
    """
    return tensor.detach().double() if is_traced() else float(tensor)


def choose(flag: bool | Tensor, one: Number, other: Number) -> Number:
    """Return one number where a flag is true, and else another.

    Args:
        flag: The flag.
        one: The former.
        other: The latter.
    """
    if isinstance(flag, Tensor):
        return torch.where(flag, one, other)
    return one if flag else other


def quotient(one: Number, other: Number, without: Number) -> Number:
    """Return a quotient, or another number where the denominator is zero.

    Args:
        one: Numerator.
        other: Denominator.
        without: The other number.
    """
    if isinstance(other, Tensor):
        return torch.where(other != 0, one / other, without)
    return one / other if other else without


def magnitude(one: Number) -> Number:
    """Return the absolute value of a number.

    Args:
        one: The number.
    """
    return one.abs() if isinstance(one, Tensor) else abs(one)


def smaller(one: Number, other: Number) -> Number:
    """Return the smaller one of two numbers.

    Args:
        one: One number.
        other: The other.
    """
    return choose(other < one, other, one)


def larger(one: Number, other: Number) -> Number:
    """Return the larger one of two numbers.

    Args:
        one: One number.
        other: The other.
    """
    return choose(other > one, other, one)


def holds(flag: bool | Tensor) -> bool:
    """Return a truth value that is rarely true, and then leads to an error or a warning.

    While a call is traced it is taken for false. Each call of what came of the trace then looks at
    the flag, and where it is true the estimator runs as it does without being compiled.

    Args:
        flag: A truth value or a 0-d tensor.
    """
    noted = _noted.get()
    if noted is None or not isinstance(flag, Tensor):
        return bool(flag)
    noted.append(flag.detach().to("cpu") != 0)
    return False


@contextlib.contextmanager
def noting() -> Iterator[list[Tensor]]:
    """Take flags for false and note them in the body.

    Yields:
        A list to which flags are added.
    """
    noted: list[Tensor] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)
