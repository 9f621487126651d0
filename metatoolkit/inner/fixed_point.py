"""Multiplication of fixed-point integers that can be undone, since the bits it loses are kept.

A product with the fraction n / 2³⁰ below 1 has fewer values than its factor, so that log2(2³⁰ / n)
bits are lost. Maclaurin et al. 2015 (arXiv 1502.03492, algorithm 3) move them into an integer that
is as long as it must be. Here that integer is the state of an entropy coder (asymmetric numeral
systems, Duda 2013, arXiv 1311.2540): its head, of 43 to 58 bits, stays with each entry, and words
of 16 bits go to a stack when it is full, at times that the head alone tells. The product is
rounded up or down by the digit that the coder gives in exchange, so that it is off by less than
one unit, and the pair of product and coder is a bijection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, FixedPointError, NonFiniteError

DIGITS = 30
WORD = 16
_MASK = 2**DIGITS - 1
_SPARE = 12
EMPTY = 2 ** (DIGITS + _SPARE)
"""Head of a coder that holds nothing."""
RANGE = 62
"""Fixed-point integers are below 2^62 in size, so that the sum of two is one of 64 bits."""


class LostBits:
    """A stack of words of 16 bits, in one tensor that grows.

    Args:
        device: Where the words are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._words = torch.empty(256, dtype=torch.int16, device=device)
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return 2 * self.count

    def push(self, words: Tensor) -> None:
        """Put words on top.

        Args:
            words: Integers from 0 to 65,535, of shape (count,).
        """
        last = self.count + len(words)
        if last > len(self._words):
            grown = self._words.new_empty(last + last // 2)
            grown[: self.count] = self._words[: self.count]
            self._words = grown
        self._words[self.count : last] = (words - 2 ** (WORD - 1)).to(torch.int16)
        self.count = last

    def pop(self, count: int) -> Tensor:
        """Take words from the top, in the order in which they were pushed.

        Args:
            count: Number of words.

        Raises:
            IndexError: There are fewer.
        """
        if count > self.count:
            raise IndexError(f"{count} words are asked for, and {self.count} are left.")
        self.count -= count
        words = self._words[self.count : self.count + count]
        return words.to(torch.int64) + 2 ** (WORD - 1)


def numerator(momentum: float | Tensor) -> int | Tensor:
    """Return n of the fraction n / 2³⁰ that is nearest to a momentum.

    Args:
        momentum: A number, or a tensor of any shape.

    Raises:
        ConfigurationError: It is not from 0.0001 to below 1, so that too many bits would be lost
            or none.
    """
    if isinstance(momentum, Tensor):
        momentum = momentum.detach().double()
        fits = bool(((momentum >= 1e-4) & (momentum < 1)).all())
        count = (momentum * 2**DIGITS).round().to(torch.int64) if fits else 0
    else:
        fits = 1e-4 <= momentum < 1
        count = round(momentum * 2**DIGITS) if fits else 0
    if not fits:
        raise ConfigurationError(
            f"momentum is {momentum}; accepted: from 0.0001 to below 1, since a step without "
            "momentum cannot be taken back. Use SGD, with Unrolled(checkpoint='tree')."
        )
    return torch.clamp(count, max=_MASK) if isinstance(count, Tensor) else min(count, _MASK)


def fraction(count: int | Tensor) -> float | Tensor:
    """Return n / 2³⁰, exact in float64.

    Args:
        count: Numerator n, or a tensor of them.
    """
    return (count.double() if isinstance(count, Tensor) else count) * 2.0**-DIGITS


def _full(head: Tensor, count: int | Tensor) -> Tensor:
    return head >= count * 2 ** (WORD + _SPARE)


def spilled(head: Tensor, count: int | Tensor) -> Tensor:
    """Return the words that full coders give away before a product, of shape (words,).

    Args:
        head: Heads before the product, of any shape.
        count: Numerator n, or a tensor of them that expands to that shape.
    """
    return head[_full(head, count)] & (2**WORD - 1)


def multiply(value: Tensor, head: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return value · n / 2³⁰, rounded up or down, and the heads with what was lost.

    Args:
        value: Integers of any shape, below 2⁶² in size.
        head: Heads of their coders, whose words :func:`spilled` tells.
        count: Numerator n, or a tensor of them that expands to that shape.
    """
    head = torch.where(_full(head, count), head >> WORD, head)
    rest = head // count
    # The digit that is taken from the coder rounds the product; (v n + digit) may pass 64 bits.
    low = (value & _MASK) * count + (head - rest * count)
    return (value >> DIGITS) * count + (low >> DIGITS), (rest << DIGITS) + (low & _MASK)


def divide(
    value: Tensor, head: Tensor, count: int | Tensor, lost: LostBits
) -> tuple[Tensor, Tensor]:
    """Return what :func:`multiply` was given.

    Args:
        value: Integers that it returned.
        head: Heads that it returned.
        count: Numerator n, or a tensor of them.
        lost: The stack that the words went to; those of this product are taken from it.
    """
    high = torch.div(value, count, rounding_mode="floor")
    low = ((value - high * count) << DIGITS) + (head & _MASK)
    quotient = low // count
    head = (head >> DIGITS) * count + (low - quotient * count)
    given = head < EMPTY
    words = lost.pop(int(given.sum()))
    head = head.masked_scatter(given, (head[given] << WORD) + words)
    return (high << DIGITS) + quotient, head


def to_fixed(tensor: Tensor, bits: int, what: str) -> Tensor:
    """Return the nearest multiples of 2^-bits as integers.

    Args:
        tensor: Numbers of any shape.
        bits: Number of bits behind the point.
        what: What they are, in words.

    Raises:
        NonFiniteError: One is NaN or infinite.
        FixedPointError: One is too large.
    """
    # In float64, where the integers of float32 and bfloat16 numbers are exact.
    scaled = tensor.detach().double() * 2.0**bits
    if not bool((scaled.abs() < 2.0**RANGE).all()):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{what} is not finite; lower the learning rate, or check the batch for NaN."
            )
        raise _overflow(what, bits, float(tensor.detach().abs().max()))
    return scaled.round().to(torch.int64)


def from_fixed(integers: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers that integers stand for, rounded to a type.

    Args:
        integers: Multiples of 2^-bits.
        bits: Number of bits behind the point.
        dtype: Type of the result.
    """
    return (integers.double() * 2.0**-bits).to(dtype)


def checked_sum(one: Tensor, other: Tensor, bits: int, what: str) -> Tensor:
    """Return the sum of fixed-point integers.

    Args:
        one: Integers below 2⁶² in size.
        other: Likewise.
        bits: Number of bits behind the point, for the message.
        what: What the sum is, in words.

    Raises:
        FixedPointError: It is too large.
    """
    total = one + other
    if not bool((total.abs() < 2**RANGE).all()):
        raise _overflow(what, bits, float(total.double().abs().max()) * 2.0**-bits)
    return total


def _overflow(what: str, bits: int, size: float) -> FixedPointError:
    return FixedPointError(
        f"{what} reaches {size:.3g}, and fixed-point numbers with fraction_bits={bits} are below "
        f"{2.0 ** (RANGE - bits):.3g}. Lower the learning rate, scale the loss down, or give fewer "
        "fraction_bits."
    )
