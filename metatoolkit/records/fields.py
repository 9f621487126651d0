"""The fields of runs: their names, where documents keep them, and how their values compare.

Comparisons are those of MongoDB, which looks into lists and orders nothing across kinds.
"""

from __future__ import annotations

import datetime
import difflib
import math
import operator
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# name in an expression -> (path in the document, may parts follow?)
FIELDS: dict[str, tuple[str, bool]] = {
    "id": ("_id", False), "uuid": ("run_uuid", False), "experiment": ("experiment.name", False),
    "command": ("command", False), "status": ("status", False), "config": ("config", True),
    "result": ("result", True), "info": ("info", True), "meta": ("meta", True),
    "metrics": ("summary", True), "host": ("host.hostname", False),
    "python": ("host.python_version", False), "cpu": ("host.cpu", False),
    "gpu": ("host.gpus.gpus.model", False), "pid": ("proc.pid", False),
    "start_time": ("start_time", False), "stop_time": ("stop_time", False),
    "heartbeat": ("heartbeat", False), "duration": ("duration", False),
    "commit": ("experiment.repositories.commit", False),
    "dirty": ("experiment.repositories.dirty", False),
    "dependencies": ("experiment.dependencies", False), "artifacts": ("artifacts.name", False),
    "reason": ("reason", False), "output": ("captured_out", False),
    "tags": ("omniboard.tags", False), "notes": ("omniboard.notes", False),
    "resumed_from": ("meta.resumed_from", False), "comment": ("meta.comment", False),
}  # fmt: skip
DATES = frozenset({"start_time", "stop_time", "heartbeat"})
MISSING = object()

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
_ORDERS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}

Condition = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Field:
    """A field that an expression names.

    Args:
        name: As it was written, for messages.
        path: Where the database keeps it.
        root: The first part of the name.
    """

    name: str
    path: str
    root: str


@dataclass(frozen=True)
class Expected:
    """What kind of value a comparison expects of a field.

    Args:
        field: The field.
        kind: ``number``, ``text`` or ``boolean``, or ``any``.
        strict: Whether runs are answered falsely where no run has such a value; else none is found.
    """

    field: Field
    kind: str
    strict: bool


def nearest(given: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the name that was meant, where one is at least so near (from 0 to 1)."""
    return next(iter(difflib.get_close_matches(given, choices, 1, cutoff)), None)


def did_you_mean(given: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """End a sentence about an unknown name, and ask for the nearest one; blank where none is."""
    near = nearest(given, choices, cutoff)
    return f". Did you mean {near}?" if near else ""


def lookup(document: Any, path: str) -> list[Any]:
    """Find every value at a dotted path, through lists as MongoDB does."""
    return [value for value in walk(document, path.split(".")) if value is not MISSING]


def value_at(document: Any, path: str) -> Any:
    """Find the value at a path: None where it does not exist, a list where there are several."""
    found = lookup(document, path)
    return found if len(found) > 1 else found[0] if found else None


def walk(value: Any, parts: Sequence[str], entries: bool = False) -> Iterator[Any]:
    """Follow a path, through lists as MongoDB does: into every entry, and to the one of a number.

    Yields every value there, with ``entries`` those of a list at the end, too, and ``MISSING`` for
    every way that ends before.
    """
    if not parts:
        yield value
        if entries and isinstance(value, list):
            yield from value
    elif isinstance(value, Mapping) and parts[0] in value:
        yield from walk(value[parts[0]], parts[1:], entries)
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, Mapping):
                yield from walk(entry, parts, entries)
        if parts[0].isdigit() and int(parts[0]) < len(value):
            yield from walk(value[int(parts[0])], parts[1:], entries and len(parts) > 1)
    else:
        yield MISSING


def duration(document: Mapping[str, Any]) -> float | None:
    """Say how many seconds a run took, or has taken so far; None where it never started."""
    start = document.get("start_time")
    end = document.get("stop_time") or document.get("heartbeat")
    if not isinstance(start, datetime.datetime) or not isinstance(end, datetime.datetime):
        return None
    return (end - start).total_seconds()


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Write nested dictionaries as one with dotted names; lists are leaves."""
    if isinstance(data, Mapping) and data:
        result = {}
        for key, value in data.items():
            result.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return result
    return {prefix: data} if prefix else {}


def identity(value: Any) -> Hashable:
    """Give a value a key, equal for equal values only: 1 and 1.0, but not 1 and true."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", "nan" if value != value else value)
    if isinstance(value, list | tuple):
        return ("list", tuple(identity(entry) for entry in value))
    if isinstance(value, Mapping):
        entries = {(str(key), identity(entry)) for key, entry in value.items()}
        return ("entries", frozenset(entries))
    return (type(value).__name__, str(value))


def comparison(path: str, symbol: str, given: Any = None) -> Condition:
    """Make the predicate of a field's comparison with a constant, or with a list of them.

    Args:
        path: The field's path in the document.
        symbol: MongoDB's operator, such as ``$gte``.
        given: The constant.

    Returns:
        Says whether the comparison holds for a document, as MongoDB does: in lists, for any entry.
    """
    parts = path.split(".")
    negated = symbol in ("$ne", "$nin")
    test = _test(symbol, given)

    return lambda document: any(map(test, walk(document, parts, True))) != negated


def relation(symbol: str, one: Any, other: Any) -> bool:
    """Compare two computed values of a run; nothing is less than a value of another kind."""
    if symbol == "$ne":
        return identity(one) != identity(other)
    if symbol == "$eq":
        # Two fields that a run lacks are not equal.
        return one is not None and identity(one) == identity(other)
    alike = kind_of(one) == kind_of(other) in ("number", "text", "time")
    return alike and _compared(symbol, one, other)


def compute(operation: str, values: list[Any]) -> Any:
    """Carry out an operation on numbers of a run; None where it has no result.

    A time may be shifted by seconds, and two times subtracted, which gives seconds.
    """
    kinds = [kind_of(value) for value in values]
    try:
        if kinds == ["time", "time"] and operation == "-":
            return (values[0] - values[1]).total_seconds()
        if kinds == ["time", "number"] and operation in ("+", "-"):
            return ARITHMETIC[operation](values[0], datetime.timedelta(seconds=values[1]))
        if any(kind != "number" for kind in kinds) or any(value != value for value in values):
            return None
        result = ARITHMETIC[operation](*values)
    except (ArithmeticError, ValueError):
        return None
    # The root of a negative number is a complex one.
    return None if isinstance(result, complex) else result


def order(value: Any) -> tuple[float, Any]:
    """Give a value its place in a sorting: missing, NaN, numbers, text, the rest."""
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


def kind_of(value: Any) -> str:
    """Name the kind of a value: boolean, number, text, time, or what Python calls it."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, datetime.datetime):
        return "time"
    return "text" if isinstance(value, str) else type(value).__name__


def is_kind(value: Any, kind: str) -> bool:
    """Say whether a value, or one in a list, is of a kind; ``any`` is one that is there."""
    if kind == "any":
        return value is not None and value != []
    entries = value if isinstance(value, list) else [value]
    return any(kind_of(one) == kind for one in entries)


def _test(symbol: str, given: Any) -> Callable[[Any], bool]:
    if symbol == "$exists":
        return lambda value: value is not MISSING
    if symbol == "$regex":
        # As those of MongoDB, classes such as \w are of ASCII.
        pattern = re.compile(given, re.ASCII)
        return lambda value: isinstance(value, str) and pattern.search(value) is not None
    if symbol in _ORDERS:
        return lambda value: _ordered(symbol, value, given)
    wanted = {identity(one) for one in (given if symbol in ("$in", "$nin") else [given])}
    return lambda value: identity(None if value is MISSING else value) in wanted


def _place(value: Any) -> tuple[float, Any]:
    """Order entries of lists as MongoDB does, by their kinds first."""
    if isinstance(value, list):
        return (3.7, [_place(entry) for entry in value])
    return (3.5, str(value)) if isinstance(value, Mapping) else order(value)


def _ordered(symbol: str, value: Any, given: Any) -> bool:
    if given is None:
        return symbol in ("$gte", "$lte") and (value is None or value is MISSING)
    if kind_of(value) != kind_of(given) or isinstance(value, Mapping):
        return False
    if value != value and given != given:
        # NaN equals itself here.
        return symbol in ("$gte", "$lte")
    if isinstance(value, list):
        value, given = _place(value), _place(given)
    return _compared(symbol, value, given)


def _compared(symbol: str, one: Any, other: Any) -> bool:
    try:
        return bool(_ORDERS[symbol](one, other))
    except TypeError:
        return False
