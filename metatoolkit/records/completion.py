"""What a run's document lacks, read or computed where a query asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.matching import TEST
from metatoolkit.records.metric_copy import summarize

HEAVY = ("captured_out", "fail_trace", "experiment.sources", "experiment.dependencies")
REASON = "reason"
REASON_PATHS = ("fail_trace", "status_note")
PICKLED = ("result", "info")
MARKED = "unlisted_metrics"
"""The field that says that ``summary`` and ``info`` do not list all metrics."""

# What this toolkit has recorded names its metrics in the summary; other documents may not.
UNLISTED: dict[str, Any] = {
    "$or": [{"summary": {"$exists": False}}, {"summary": {}}, {MARKED: {"$exists": True}},
            {"run_uuid": {"$exists": False}}]
}  # fmt: skip


def condition_paths(condition: Mapping[str, Any]) -> Iterator[str]:
    """List the paths that a filter looks at.

    Args:
        condition: A filter of a query expression.

    Yields:
        Dotted paths.
    """
    for key, wanted in condition.items():
        if key in ("$and", "$or", "$nor"):
            for entry in wanted:
                yield from condition_paths(entry)
        elif key == TEST:
            yield from wanted.paths()
        else:
            yield key


def is_computed(path: str) -> bool:
    """Say whether what is at a path may be in no document.

    Args:
        path: A dotted path.

    Returns:
        Whether it is a metric's value, or the reason of a failure.
    """
    return path == REASON or path == "summary" or path.startswith("summary.")


def may_be_pickled(path: str) -> bool:
    """Say whether stock Sacred may have stored an object where a number is meant.

    Args:
        path: A dotted path.

    Returns:
        Whether it is in what a run returned or noted.
    """
    return path.partition(".")[0] in PICKLED


def plain_objects(value: Any) -> Any:
    """Read NumPy's numbers and arrays, tuples and keys as jsonpickle writes them; decode no others.

    Args:
        value: Data that stock Sacred has stored.

    Returns:
        The data with plain numbers and lists in their places.
    """
    if isinstance(value, list):
        return [plain_objects(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"py/tuple"}:
        return plain_objects(value["py/tuple"])
    if str(value.get("py/object", "")).startswith("numpy."):
        if isinstance(value.get("value"), bool | int | float):
            return value["value"]
        if isinstance(value.get("values"), list):
            return value["values"]
    return {str(key).removeprefix("json://"): plain_objects(one) for key, one in value.items()}


def needs_look(condition: Mapping[str, Any]) -> bool:
    """Say whether a filter can only be applied to documents that were completed.

    Args:
        condition: A filter of a query expression.

    Returns:
        Whether MongoDB would answer it falsely, or not at all.
    """
    paths = condition_paths(condition)
    return has_test(condition) or any(is_computed(one) or may_be_pickled(one) for one in paths)


def weakened(condition: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a filter what MongoDB cannot answer.

    Args:
        condition: A filter of a query expression.

    Returns:
        A filter that selects at least the same documents.
    """
    kept = []
    for key, wanted in condition.items():
        if key == "$and":
            kept += [part for entry in wanted if (part := weakened(entry))]
        elif not needs_look({key: wanted}):
            kept.append({key: wanted})
    return {"$and": kept} if kept else {}


def named_metrics(paths: Iterable[str]) -> list[str] | None:
    """List the metrics whose values some paths ask for.

    Args:
        paths: Dotted paths.

    Returns:
        The metrics' names, or None for all of them.
    """
    names: dict[str, None] = {}
    for path in paths:
        if path == "summary":
            return None
        if path.startswith("summary."):
            names[decode_key(path.split(".")[1])] = None
    return list(names)


def steps_asked(paths: Iterable[str]) -> dict[str, list[str]]:
    """List the steps at which values of metrics are asked for.

    Args:
        paths: Dotted paths, such as ``summary.loss.at.100``.

    Returns:
        The steps, as they are written in the paths, by metric.
    """
    found: dict[str, list[str]] = {}
    for parts in (path.split(".") for path in paths):
        if parts[0] == "summary" and len(parts) == 4 and parts[2] == "at":
            found.setdefault(decode_key(parts[1]), []).append(parts[3])
    return found


def complete_metrics(
    document: dict[str, Any],
    read: Callable[[str], Sequence[Sequence[Any]]],
    names: Iterable[str],
    steps: Mapping[str, Sequence[str]],
) -> None:
    """Put what is asked about metrics into a document.

    Args:
        document: The document, which is changed.
        read: Returns steps and values of a metric of this run, and perhaps more.
        names: The metrics.
        steps: The steps asked for, by metric.
    """
    present = document.get("summary")
    summary = dict(present) if isinstance(present, Mapping) else {}
    for name in names:
        at, values = read(name)[:2]
        if not values:
            continue
        key = encode_key(name)
        former = summary.get(key)
        entry = {**(former if isinstance(former, Mapping) else {}), **summarize(at, values)}
        for step in steps.get(name, ()):
            number = float(decode_key(step))
            found = [value for one, value in zip(at, values, strict=False) if one == number]
            if found:
                # A resumed run may have logged a step twice: the later value counts.
                entry["at"] = {**entry.get("at", {}), step: found[-1]}
        summary[key] = entry
    document["summary"] = summary


def add_reason(document: dict[str, Any]) -> None:
    """Put the reason of a run's end into its document, where there is one.

    Args:
        document: The document, its traceback included; changed.
    """
    told = reason(document)
    if told is not None:
        document[REASON] = told


def reason(document: Mapping[str, Any]) -> str | None:
    """Say in one line why a run ended before its time.

    Args:
        document: The run's document, its traceback included.

    Returns:
        The error's own line, else the note about its end; None where there is neither.
    """
    trace = document.get("fail_trace")
    lines = trace if isinstance(trace, list) else [trace or ""]
    text = "".join(str(line) for line in lines).strip()
    if text:
        told = [line for line in text.splitlines() if line and not line[0].isspace()]
        return told[-1] if told else text.splitlines()[-1].strip()
    note = document.get("status_note")
    return str(note) if note else None


def has_test(condition: Mapping[str, Any]) -> bool:
    """Say whether a filter holds a comparison that MongoDB does not know.

    Args:
        condition: A filter of a query expression.

    Returns:
        Whether it does.
    """
    return any(
        key == TEST or (key in ("$and", "$or", "$nor") and any(has_test(entry) for entry in wanted))
        for key, wanted in condition.items()
    )
