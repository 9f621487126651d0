"""Filters applied to documents here, with comparisons that no filter of MongoDB expresses."""

from __future__ import annotations

import datetime
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metatoolkit.records.fields import MISSING, identity, lookup, walk


def matches(document: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Say whether MongoDB would select a document.

    Args:
        document: The document.
        condition: A filter that :func:`metatoolkit.records.expressions.parse` made.

    Returns:
        Whether every entry of the filter holds.
    """
    return all(_holds(document, key, wanted) for key, wanted in condition.items())


def order(value: Any) -> tuple[int, Any]:
    """Give a value its place in a sorting of mixed values: missing, numbers, text, the rest.

    Args:
        value: A value of a document, or None where it has none.

    Returns:
        A key for sorting.
    """
    if value is None:
        return (0, 0)
    if isinstance(value, bool):
        return (4, value)
    if isinstance(value, int | float):
        return (1, -math.inf) if math.isnan(value) else (2, value)
    if isinstance(value, str):
        return (3, value)
    if isinstance(value, datetime.datetime):
        return (5, value)
    return (6, str(value))


def with_dead(condition: dict[str, Any], dead: list[Any]) -> dict[str, Any]:
    """Rewrite a filter so that some runs count as PROBABLY_DEAD.

    Args:
        condition: A filter that an expression was translated into.
        dead: The ids of the runs.

    Returns:
        The filter.
    """
    result = []
    for key, wanted in condition.items():
        if key in ("$and", "$or", "$nor"):
            result.append({key: [with_dead(entry, dead) for entry in wanted]})
        elif key == "status":
            alive = {"$and": [{key: wanted}, {"_id": {"$nin": dead}}]}
            meant = matches({"status": "PROBABLY_DEAD"}, {key: wanted})
            result.append({"$or": [alive, {"_id": {"$in": dead}}]} if meant else alive)
        else:
            result.append({key: wanted})
    return result[0] if len(result) == 1 else {"$and": result}


def _holds(document: Mapping[str, Any], key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(matches(document, entry) for entry in wanted)
    if key == "$or":
        return any(matches(document, entry) for entry in wanted)
    if key == "$nor":
        return not any(matches(document, entry) for entry in wanted)
    if key == TEST:
        return bool(wanted.holds(document))
    candidates = list(walk(document, key.split(".")))
    # As MongoDB does: in lists, every entry too.
    candidates += [entry for one in candidates if isinstance(one, list) for entry in one]
    if isinstance(wanted, Mapping):
        return all(_compare(operator, candidates, given) for operator, given in wanted.items())
    return _compare("$eq", candidates, wanted)


def _compare(operator: str, candidates: list[Any], given: Any) -> bool:
    if operator == "$exists":
        return any(value is not MISSING for value in candidates) == given
    if operator == "$eq":
        return any(_same(value, given) for value in candidates)
    if operator == "$ne":
        return not _compare("$eq", candidates, given)
    if operator == "$in":
        return any(_compare("$eq", candidates, entry) for entry in given)
    if operator == "$nin":
        return not _compare("$in", candidates, given)
    if operator == "$regex":
        return any(isinstance(value, str) and re.search(given, value) for value in candidates)
    return any(_ordered(operator, value, given) for value in candidates)


def _same(value: Any, given: Any) -> bool:
    if value is MISSING:
        return given is None
    if isinstance(value, float) and isinstance(given, float):
        if math.isnan(value) and math.isnan(given):
            return True
    return _kind(value) == _kind(given) and bool(value == given)


def _place(value: Any) -> tuple[float, Any]:
    """Order entries of lists as MongoDB does, by their kinds first."""
    if isinstance(value, list):
        return (3.7, [_place(entry) for entry in value])
    return (3.5, str(value)) if isinstance(value, Mapping) else order(value)


def _ordered(operator: str, value: Any, given: Any) -> bool:
    if given is None:
        return operator in ("$gte", "$lte") and (value is None or value is MISSING)
    if _kind(value) != _kind(given) or isinstance(value, Mapping):
        return False
    if isinstance(value, list):
        value, given = _place(value), _place(given)
    try:
        return bool(_ORDERS[operator](value, given))
    except TypeError:
        return False


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
