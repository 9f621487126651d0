"""Tensors of several parameters that an update moves at once, as if they were one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Several = list[Tensor] | tuple[Tensor, ...]
Update = TypeVar("Update", bound=Callable[..., Any])


class Bundle:
    """Several tensors, of which each operation takes all, entry by entry.

    The operations are those of tensors, on CPUs to the last bit, and as differentiable; they are
    taken by one call for all tensors where PyTorch has one. Factors and summands that are no
    bundles are numbers.

    Args:
        tensors: The tensors, each of any shape.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Several) -> None:
        self.tensors = tensors

    def add(self, other: Bundle | float, alpha: float = 1) -> Bundle:
        """Return ``self`` + ``alpha`` · ``other``, as ``Tensor.add`` does.

        Args:
            other: A bundle of tensors of the same shapes, or a number.
            alpha: Factor of ``other``.
        """
        if isinstance(other, Bundle):
            return Bundle(torch._foreach_add(self.tensors, other.tensors, alpha=alpha))
        return Bundle(torch._foreach_add(self.tensors, alpha * other))

    def __add__(self, other: Bundle | float) -> Bundle:
        return self.add(other)

    def __mul__(self, other: Bundle | float) -> Bundle:
        if isinstance(other, Bundle):
            return Bundle(torch._foreach_mul(self.tensors, other.tensors))
        return Bundle(torch._foreach_mul(self.tensors, other))

    __rmul__ = __mul__

    def __truediv__(self, other: Bundle | float) -> Bundle:
        if isinstance(other, Bundle):
            return Bundle(torch._foreach_div(self.tensors, other.tensors))
        return Bundle(torch._foreach_div(self.tensors, other))

    def __neg__(self) -> Bundle:
        return Bundle(torch._foreach_neg(self.tensors))

    def square(self) -> Bundle:
        """Return the squares."""
        return Bundle(torch._foreach_pow(self.tensors, 2))

    def sqrt(self) -> Bundle:
        """Return the square roots."""
        return Bundle(torch._foreach_sqrt(self.tensors))

    def eq(self, value: float) -> Bundle:
        """Return where entries equal a number, as truth values.

        Args:
            value: The number.
        """
        return Bundle([tensor.eq(value) for tensor in self.tensors])

    def masked_fill(self, mask: Bundle, value: float) -> Bundle:
        """Return the tensors with a number where a mask is true.

        Args:
            mask: Truth values of the same shapes.
            value: The number.
        """
        pairs = zip(self.tensors, mask.tensors, strict=True)
        return Bundle([tensor.masked_fill(where, value) for tensor, where in pairs])


def takes_bundles(update: Update) -> Update:
    """Say of an update that it takes bundles in the place of tensors, too.

    It is said of the function, so that a class which overrides the update takes it back.

    Args:
        update: That of an inner learner, which reads hyper-parameters that are numbers and
            computes with the operations of :class:`Bundle` where no other option is set.
    """
    update.takes_bundles = True  # type: ignore[attr-defined]
    return update
