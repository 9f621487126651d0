"""Why nothing was found: fields and values that no run has, and the nearest that some run has."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from metatoolkit.errors import QueryError, UnknownNameError
from metatoolkit.records.clean import decode_key
from metatoolkit.records.expressions import Query
from metatoolkit.records.fields import FIELDS, Expected, Field, flatten, lookup
from metatoolkit.records.matching import matches
from metatoolkit.records.stores import Store
from metatoolkit.records.terms import KINDS

STATUSES = (
    "QUEUED", "RUNNING", "COMPLETED", "INTERRUPTED", "TIMEOUT", "FAILED", "PROBABLY_DEAD",
)  # fmt: skip
UNTRUSTED = ("FAILED",)
FEW = 8
# Each of these conditions holds for any value of its kind.
_OF_KIND: dict[str, list[dict[str, Any]]] = {
    "number": [{"$gte": float("-inf")}, {"$eq": float("nan")}],
    "text": [{"$gte": ""}],
    "boolean": [{"$in": [True, False]}],
}
_KIND_WORDS = {"number": "a number", "text": "text", "boolean": "true or false,"}
SHORT = 30


def check_fields(stores: Sequence[Store], fields: Sequence[Field]) -> None:
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
        if not deep:
            continue
        if field.root == "metrics":
            _check_metric(stores, field)
            continue
        if any(store.first({field.path: {"$exists": True}}, field.path) for store in stores):
            continue
        known: set[str] = set()
        for store in stores:
            for header in store.headers({root: {"$exists": True}}, [root])[-200:]:
                known.update(flatten(header.get(root)))
        if not known:
            return
        names = sorted(f"{field.root}.{decode_key(name)}" for name in known)
        near = difflib.get_close_matches(field.name, names, 1, 0.5)
        hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(names[:20])}"
        raise QueryError(f"no run has the field {field.name}.{hint}")


def _check_metric(stores: Sequence[Store], field: Field) -> None:
    if "." not in field.path:
        return
    metric = decode_key(field.path.split(".")[1])
    if any(store.has_metric(metric) for store in stores):
        return
    known = {name for store in stores for name in store.all_metric_names()}
    if known:
        raise UnknownNameError("metric", metric, known)


def check_kinds(stores: Sequence[Store], expected: Sequence[Expected]) -> None:
    """Refuse comparisons that would be answered falsely: of numbers with text, of unknown fields.

    Args:
        stores: Where the runs are.
        expected: What the comparisons of a query expect of fields.

    Raises:
        QueryError: All runs that have the field hold something else there, or none has it.
        UnknownNameError: No run has the metric.
    """
    for one in expected:
        if one.strict:
            told = _other_kind(stores, one)
            if told is not None:
                raise QueryError(told)


def kind_hint(stores: Sequence[Store], expected: Sequence[Expected]) -> str | None:
    """Find a comparison for equality with a value of a kind that no run has there.

    Args:
        stores: Where the runs are.
        expected: What the comparisons of a query expect of fields.

    Returns:
        One line, or None.
    """
    told = (_other_kind(stores, one) for one in expected if not one.strict)
    return next((one for one in told if one is not None), None)


def _other_kind(stores: Sequence[Store], expected: Expected) -> str | None:
    field, path = expected.field, expected.field.path
    if field.root == "metrics":
        # Values of metrics are numbers, whatever was asked for.
        check_fields(stores, [field])
        return None
    if expected.kind in _OF_KIND:
        wanted = {"$or": [{path: one} for one in _OF_KIND[expected.kind]]}
        if any(store.first(wanted, path) for store in stores):
            return None
    for store in stores:
        found = store.first({path: {"$nin": [None, []]}}, path)
        values = lookup(found, path) if found is not None else []
        if values and expected.kind in _OF_KIND:
            value = values[0][0] if isinstance(values[0], list) and values[0] else values[0]
            kind = KINDS.get(type(value))
            if kind is None or kind == expected.kind:
                return None
            return f"{field.name} is {_KIND_WORDS[kind]} such as {value!r}: compare it with one"
        if values:
            return None
    check_fields(stores, [field])
    return None


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
    names = {path: name for name, (path, _) in FIELDS.items()}
    names |= {field.path: field.name for field in query.fields}
    for path, wanted in _comparisons(query.filter):
        present = list(STATUSES) if path == "status" else []
        good = list(present)
        for store in stores:
            for header in store.headers({path: {"$exists": True}}, [path, "status"]):
                found = lookup(header, path)
                present += found
                good += found if header.get("status") not in UNTRUSTED else []
        if not present or any(matches({"value": one}, {"value": wanted}) for one in present):
            continue
        choices = _distinct(present)
        given = wanted.get("$in", [wanted.get("$eq")])
        told = f"{names[path]} in {given}" if "$in" in wanted else f"{names[path]} == {given[0]!r}"
        # A misspelled setting is what a run may have failed of.
        trusted = _distinct(good)
        near = _nearest(given, trusted or choices)
        if near is not None:
            return f"no run has {told}; did you mean {near!r}?"
        if len(choices) <= FEW and all(len(repr(one)) <= SHORT for one in choices):
            only = [repr(one) for one in choices if one not in trusted] if trusted else []
            failed = f" ({', '.join(only)} in failed runs only)" if only else ""
            return f"no run has {told}; there are: {', '.join(map(repr, choices))}{failed}"
    return None


def _comparisons(condition: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what a filter wants to be equal; below a negation nothing keeps runs out."""
    for key, wanted in condition.items():
        if key in ("$and", "$or"):
            for entry in wanted:
                yield from _comparisons(entry)
        elif isinstance(wanted, dict) and ("$eq" in wanted or "$in" in wanted):
            given = wanted.get("$in", [wanted.get("$eq")])
            if given and all(isinstance(one, str | int | float) for one in given):
                yield key, wanted


def _distinct(values: list[Any]) -> list[Any]:
    entries = [one for value in values for one in (value if isinstance(value, list) else [value])]
    plain = {(type(one), one): one for one in entries if isinstance(one, str | int | float)}
    return sorted(plain.values(), key=lambda one: (isinstance(one, str), one))


def _nearest(given: list[Any], choices: list[Any]) -> Any | None:
    """Find what was meant: written in other letters, as a number instead of text, or misspelled."""
    by_text = {str(one).casefold(): one for one in choices}
    for one in given:
        text = str(one).casefold()
        if text in by_text:
            return by_text[text]
        # Numbers that look alike are as different as any.
        words = [word for word, choice in by_text.items() if isinstance(choice, str)]
        near = difflib.get_close_matches(text, words, 1, 0.6) if isinstance(one, str) else []
        if near:
            return by_text[near[0]]
    return None
