"""Comparisons that no filter of MongoDB expresses: of fields, and of what is computed of them."""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metatoolkit.records.fields import identity, lookup

TEST = "(test)"
"""The key under which a filter holds a :class:`Test`; no field of a document has this name."""

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": lambda one, other: float(one) ** other,
    "%": operator.mod,
    "abs": abs,
    "negative": operator.neg,
}
_ORDERS = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


@dataclass(frozen=True)
class Operand:
    """One side of a comparison: a constant, a field, or something computed of others.

    Args:
        value: The constant.
        path: The field's path in the document; None for anything else.
        operation: A key of ``ARITHMETIC``; None for a constant or a field.
        parts: What the operation takes.
    """

    value: Any = None
    path: str | None = None
    operation: str | None = None
    parts: tuple[Operand, ...] = ()

    def paths(self) -> Iterator[str]:
        """List the paths of all fields.

        Yields:
            Dotted paths.
        """
        if self.path is not None:
            yield self.path
        for part in self.parts:
            yield from part.paths()

    def evaluate(self, document: Mapping[str, Any]) -> Any:
        """Compute the value for a run.

        Args:
            document: The run's document.

        Returns:
            The value; None where a field is missing or is no number that could be computed with.
        """
        if self.path is not None:
            found = lookup(document, self.path)
            return found if len(found) > 1 else found[0] if found else None
        if self.operation is None:
            return self.value
        values = [part.evaluate(document) for part in self.parts]
        return compute(self.operation, values)


@dataclass(frozen=True)
class Test:
    """A comparison of two operands.

    Args:
        symbol: MongoDB's operator, such as ``$lt``.
        left: One side.
        right: The other side.
    """

    __test__ = False

    symbol: str
    left: Operand
    right: Operand

    def paths(self) -> list[str]:
        """List the paths of all fields.

        Returns:
            Dotted paths.
        """
        return [*self.left.paths(), *self.right.paths()]

    def holds(self, document: Mapping[str, Any]) -> bool:
        """Say whether the comparison holds for a run.

        Args:
            document: The run's document.

        Returns:
            Whether it does; nothing is less or greater than a value of another kind.
        """
        one, other = self.left.evaluate(document), self.right.evaluate(document)
        if self.symbol == "$ne":
            return identity(one) != identity(other)
        if self.symbol == "$eq":
            # Two fields that a run lacks are not equal.
            return one is not None and identity(one) == identity(other)
        try:
            alike = _kind(one) == _kind(other) in ("number", "text", "time")
            return alike and bool(_ORDERS[self.symbol](one, other))
        except TypeError:
            return False


def compute(operation: str, values: list[Any]) -> Any:
    """Carry out an operation on values of a run.

    Args:
        operation: A key of ``ARITHMETIC``.
        values: Numbers; a time may be shifted by seconds, and two times subtracted, in seconds.

    Returns:
        The result; None where there is none.
    """
    kinds = [_kind(value) for value in values]
    try:
        if kinds == ["time", "time"] and operation == "-":
            return (values[0] - values[1]).total_seconds()
        if kinds == ["time", "number"] and operation in ("+", "-"):
            return ARITHMETIC[operation](values[0], datetime.timedelta(seconds=values[1]))
        if any(kind != "number" for kind in kinds):
            return None
        result = ARITHMETIC[operation](*values)
    except (ArithmeticError, ValueError):
        return None
    # The root of a negative number is a complex one.
    return None if isinstance(result, complex) else result


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if not math.isnan(value) else "nan"
    if isinstance(value, datetime.datetime):
        return "time"
    return "text" if isinstance(value, str) else type(value).__name__
