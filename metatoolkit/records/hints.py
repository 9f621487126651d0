"""Why nothing was found: fields and values that no run has, and the nearest that some run has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from metatoolkit.errors import QueryError, UnknownNameError
from metatoolkit.records.clean import decode_key
from metatoolkit.records.expressions import Query
from metatoolkit.records.fields import (
    FIELDS,
    Expected,
    Field,
    comparison,
    did_you_mean,
    flatten,
    kind_of,
    lookup,
)
from metatoolkit.records.stores import Store

STATUSES = (
    "QUEUED", "RUNNING", "COMPLETED", "INTERRUPTED", "TIMEOUT", "FAILED", "PROBABLY_DEAD",
)  # fmt: skip
UNTRUSTED = ("FAILED",)
FEW = 8
SHORT = 30
_KIND_WORDS = {"number": "a number", "text": "text", "boolean": "true or false,"}


def check_fields(stores: Sequence[Store], fields: Iterable[Field]) -> None:
    """Tell misspelled fields from those that merely have no value here.

    Args:
        stores: Where the runs are.
        fields: Fields that were asked for in vain.

    Raises:
        QueryError: A field occurs in no run at all, while others of its kind do.
        UnknownNameError: No run has the metric.
    """
    for field in fields:
        root, deep = FIELDS[field.root]
        # Of a metric, which values it has is known.
        path = ".".join(field.path.split(".")[:2]) if field.root == "metrics" else field.path
        if not deep or path == root or any(True for _ in _values(stores, path)):
            continue
        if field.root == "metrics":
            known = {name for store in stores for name in store.metric_names()}
            metric = decode_key(path.partition(".")[2])
            if known and metric not in known:
                raise UnknownNameError("metric", metric, known)
            continue
        every = [header for store in stores for header in [*store.headers({}, [root])][-200:]]
        names = {name for header in every for name in flatten(header.get(root))}
        told = sorted(f"{field.root}.{decode_key(name)}" for name in names)
        if told:
            near = did_you_mean(field.name, told, 0.5)
            hint = near or f". There are: {', '.join(told[:20])}"
            raise QueryError(f"no run has the field {field.name}{hint}")


def unproven(headers: Sequence[Mapping[str, Any]], expected: Iterable[Expected]) -> list[Expected]:
    """List what no run that was found shows to be a sensible comparison.

    Args:
        headers: The runs, with the fields that the comparisons name.
        expected: What the comparisons of a query expect of fields.

    Returns:
        Those that expect a kind of value that none of the runs has.
    """
    return [
        one
        for one in expected
        if not any(_is_kind(v, one.kind) for h in headers for v in lookup(h, one.field.path))
    ]


def kind_hint(stores: Sequence[Store], expected: Expected) -> str | None:
    """Find out whether any run has the kind of value that a comparison expects.

    Args:
        stores: Where the runs are.
        expected: What the comparison expects of a field.

    Returns:
        One line that says what runs have there instead; None where some run has such a value.

    Raises:
        QueryError: No run has the field.
        UnknownNameError: No run has the metric.
    """
    field, other = expected.field, None
    # Values of metrics are numbers, whatever was asked for.
    for value in _values(stores, field.path) if field.root != "metrics" else ():
        if _is_kind(value, expected.kind):
            return None
        entries = value if isinstance(value, list) else [value]
        other = next((one for one in [other, *entries] if one is not None), None)
    if other is None:
        check_fields(stores, [field])
    kind = _KIND_WORDS.get(kind_of(other))
    return kind and f"{field.name} is {kind} such as {other!r}: compare it with one"


def unmatched_value(stores: Sequence[Store], query: Query) -> str | None:
    """Find a comparison of a query that no run at all can fulfill.

    Reads one field of every run per comparison.

    Args:
        stores: Where the runs are.
        query: What has selected nothing.

    Returns:
        One line that names the comparison, and the value that was meant or those that there are;
        None where every value occurs, or nothing helpful can be said.
    """
    for field, symbol, wanted in query.equal:
        present = list(STATUSES) if field.root == "status" else []
        good = list(present)
        for store in stores:
            for header in store.headers({}, [field.path, "status"]):
                found = lookup(header, field.path)
                present += found
                good += found if header.get("status") not in UNTRUSTED else []
        holds = comparison("value", symbol, wanted)
        if not present or any(holds({"value": one}) for one in present):
            continue
        given = wanted if symbol == "$in" else [wanted]
        told = f"no run has {field.name} {'in' if symbol == '$in' else '=='} {wanted!r}"
        # A misspelled setting is what a run may have failed of.
        choices, trusted = _distinct(present), _distinct(good)
        near = _nearest(given, trusted or choices)
        if near is not None:
            return f"{told}; did you mean {near!r}?"
        if len(choices) <= FEW and all(len(repr(one)) <= SHORT for one in choices):
            only = [repr(one) for one in choices if one not in trusted] if trusted else []
            failed = f" ({', '.join(only)} in failed runs only)" if only else ""
            return f"{told}; there are: {', '.join(map(repr, choices))}{failed}"
    return None


def _values(stores: Sequence[Store], path: str) -> Iterator[Any]:
    root = path.partition(".")[0]
    computed = root in ("summary", "reason")
    for store in stores:
        for header in store.headers({} if computed else {root: {"$exists": True}}, [path]):
            yield from lookup(header, path)


def _is_kind(value: Any, kind: str) -> bool:
    entries = [value, *value] if isinstance(value, list) else [value]
    if kind == "any":
        return value is not None and value != []
    return any(kind_of(one) == kind for one in entries)


def _distinct(values: list[Any]) -> list[Any]:
    entries = [one for value in values for one in (value if isinstance(value, list) else [value])]
    plain = {(type(one), one): one for one in entries if isinstance(one, str | int | float)}
    return sorted(plain.values(), key=lambda one: (isinstance(one, str), one))


def _nearest(given: list[Any], choices: list[Any]) -> Any | None:
    """Find what was meant: written in other letters, as a number instead of text, or misspelled."""
    by_text = {str(one).casefold(): one for one in choices}
    # Numbers that look alike are as different as any.
    words = [word for word, choice in by_text.items() if isinstance(choice, str)]
    for one in given:
        text = str(one).casefold()
        near = difflib.get_close_matches(text, words, 1, 0.6) if isinstance(one, str) else []
        for word in (text, *near):
            if word in by_text:
                return by_text[word]
    return None
