"""What is asked for: the names of a run's fields and where the database keeps them, and times."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metatoolkit.records.clean import encode_key
from metatoolkit.records.spool import utcnow

# name in an expression -> (path in the document, may parts follow?)
FIELDS: dict[str, tuple[str, bool]] = {
    "id": ("_id", False),
    "uuid": ("run_uuid", False),
    "experiment": ("experiment.name", False),
    "command": ("command", False),
    "status": ("status", False),
    "config": ("config", True),
    "result": ("result", True),
    "info": ("info", True),
    "meta": ("meta", True),
    "metrics": ("summary", True),
    "host": ("host.hostname", False),
    "python": ("host.python_version", False),
    "cpu": ("host.cpu", False),
    "gpu": ("host.gpus.gpus.model", False),
    "pid": ("proc.pid", False),
    "start_time": ("start_time", False),
    "stop_time": ("stop_time", False),
    "heartbeat": ("heartbeat", False),
    "duration": ("duration", False),
    "commit": ("experiment.repositories.commit", False),
    "dirty": ("experiment.repositories.dirty", False),
    "dependencies": ("experiment.dependencies", False),
    "artifacts": ("artifacts.name", False),
    "reason": ("reason", False),
    "output": ("captured_out", False),
    "tags": ("omniboard.tags", False),
    "notes": ("omniboard.notes", False),
    "resumed_from": ("meta.resumed_from", False),
    "comment": ("meta.comment", False),
}
DATES = frozenset({"start_time", "stop_time", "heartbeat"})
MISSING = object()


STATISTICS = ("last", "min", "max", "count", "step", "min_step", "max_step")


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


def metric_parts(parts: list[str], series: bool = False) -> list[str]:
    """Tell a metric's name from the value of it that is meant.

    Args:
        parts: What follows ``metrics``, such as ``["loss", "min"]`` or ``["loss", "at", "100"]``.
        series: Whether the metric as a whole may be meant.

    Returns:
        The name, and what is asked of it.

    Raises:
        ValueError: It is not said which of the metric's values is meant.
    """
    if len(parts) > 2 and parts[-2] == "at" and is_number(parts[-1]):
        return [".".join(parts[:-2]), *parts[-2:]]
    if len(parts) > 1 and parts[-1] in STATISTICS:
        return [".".join(parts[:-1]), parts[-1]]
    if series:
        return [".".join(parts)] if parts else []
    near = difflib.get_close_matches(parts[-1], STATISTICS, 1, 0.6) if len(parts) > 1 else []
    if near:
        raise ValueError(f"a metric has no {parts[-1]!r}. Did you mean {near[0]}?")
    name = ".".join(parts) or "name"
    shown = f"metrics.{name}" if name.isidentifier() else f"metrics[{name!r}]"
    raise ValueError(
        f"a metric has many values: write {shown}.last, .min, .max, .count or {shown}.at[100] for "
        "the one at step 100"
    )


def is_number(text: str) -> bool:
    """Say whether a text is a number as steps are written.

    Args:
        text: The text.

    Returns:
        Whether it is one, such as ``100``, ``-1`` or ``0.5``.
    """
    return text.removeprefix("-").replace(".", "", 1).replace("e+", "", 1).isdigit()


def stored_path(parts: list[str]) -> str:
    """Translate a field's name into its path in the document.

    Args:
        parts: The name cut at its dots; the first one is a key of ``FIELDS``.

    Returns:
        A dotted path for MongoDB.
    """
    path, _ = FIELDS[parts[0]]
    return ".".join([path, *(encode_key(part) for part in parts[1:])])


def lookup(document: Any, path: str) -> list[Any]:
    """Find the values at a path, through lists as MongoDB does.

    Args:
        document: A document.
        path: A dotted path.

    Returns:
        Every value there; none if the path does not exist.
    """
    return [value for value in walk(document, path.split(".")) if value is not MISSING]


def walk(value: Any, parts: Sequence[str]) -> Iterator[Any]:
    """Follow a path, through lists as MongoDB does: into every entry, and to the one of a number.

    Args:
        value: A document, or a part of one.
        parts: What is left of the path.

    Yields:
        Every value there, and ``MISSING`` for every way that ends before.
    """
    if not parts:
        yield value
    elif isinstance(value, Mapping) and parts[0] in value:
        yield from walk(value[parts[0]], parts[1:])
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, Mapping):
                yield from walk(entry, parts)
        if parts[0].isdigit() and int(parts[0]) < len(value):
            yield from walk(value[int(parts[0])], parts[1:])
    else:
        yield MISSING


def duration(document: Mapping[str, Any]) -> float | None:
    """Say how long a run took, or has taken so far.

    Args:
        document: The run's document.

    Returns:
        Seconds, or None where it never started.
    """
    start = document.get("start_time")
    end = document.get("stop_time") or document.get("heartbeat")
    if not isinstance(start, datetime.datetime) or not isinstance(end, datetime.datetime):
        return None
    return (end - start).total_seconds()


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Write nested dictionaries as one with dotted names.

    Args:
        data: Nested data.
        prefix: What every name begins with.

    Returns:
        One entry per leaf; lists are leaves.
    """
    if isinstance(data, Mapping) and data:
        result = {}
        for key, value in data.items():
            result.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return result
    return {prefix: data} if prefix else {}


def identity(value: Any) -> Hashable:
    """Give a value a key that is equal for equal values only: 1 and 1.0, but not 1 and true.

    Args:
        value: Plain data.

    Returns:
        The key.
    """
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


_UNIT = r"(\d+(?:\.\d+)?)\s*(seconds?|sec|s|minutes?|min|m|hours?|h|days?|d|weeks?|w)"
_AGO = re.compile(rf"{_UNIT}(?:\s+ago)?")
_LENGTH = re.compile(rf"{_UNIT}(?![a-z])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def whole_day(text: str) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Find the day that a text means.

    Args:
        text: Such as ``2026-11-17``, ``yesterday`` or ``last tuesday``.

    Returns:
        Its first moment here and that of the next day, as the database keeps times; None for
        anything else.
    """
    day = _day(text)
    return None if day is None else (_naive_utc(day), _naive_utc(_next_day(day)))


def seconds(text: str) -> float:
    """Read a duration.

    Args:
        text: Such as ``90 minutes``, ``2 h`` or ``1h 30m``.

    Returns:
        Its length in seconds.

    Raises:
        ValueError: The text means no duration.
    """
    given = text.strip().lower()
    parts = _LENGTH.findall(given)
    if not parts or _LENGTH.sub("", given).strip(" ,"):
        raise ValueError(f"not a duration: {text!r}")
    return sum(float(number) * _SECONDS[unit[0]] for number, unit in parts)


def moment(text: str) -> datetime.datetime:
    """Find the moment that a text means.

    Args:
        text: A day, which means its beginning, a day with a time, or how long ago it was.

    Returns:
        The moment as the database keeps times: in UTC, without a time zone.

    Raises:
        ValueError: The text means no time.
        OverflowError: The time is out of the calendar's range.
        OSError: The system does not know the local time then.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago:
        seconds = float(ago.group(1)) * _SECONDS[ago.group(2)[0]]
        return utcnow() - datetime.timedelta(seconds=seconds)
    day = _day(text)
    if day is not None:
        return _naive_utc(day)
    return _naive_utc(datetime.datetime.fromisoformat(text.strip()).astimezone())


def _day(text: str) -> datetime.datetime | None:
    text = text.strip().lower()
    today = datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return _local(today - datetime.timedelta(days=text == "yesterday"))
    weekday = text.removeprefix("last").strip()
    if weekday in WEEKDAYS:
        # The latest one that is over: on a Tuesday, `last tuesday` is a week ago.
        days = (today.weekday() - WEEKDAYS.index(weekday) - 1) % 7 + 1
        return _local(today - datetime.timedelta(days=days))
    if _DATE.fullmatch(text):
        try:
            return _local(datetime.datetime.fromisoformat(text))
        except ValueError:
            return None
    return None


def _local(moment: datetime.datetime) -> datetime.datetime:
    return moment.replace(tzinfo=None).astimezone()


def _next_day(day: datetime.datetime) -> datetime.datetime:
    # By the calendar, since days on which clocks change are not of 24 hours.
    return _local(day.replace(tzinfo=None) + datetime.timedelta(days=1))


def _naive_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC).replace(tzinfo=None)
