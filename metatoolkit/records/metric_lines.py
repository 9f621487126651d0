"""The lines that a run's values are written in, and what a stored copy is compared by."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metatoolkit.records.clean import INT64
from metatoolkit.records.terminal import say

EARLIEST, LATEST = -62_000_000_000, 253_000_000_000
_EPOCH = datetime.datetime(1970, 1, 1)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def parse(lines: list[bytes], place: Path) -> list[list[Any]]:
    """Parse many lines in one call: the run pays for every moment that is spent here.

    Args:
        lines: Lines of the file of values.
        place: The run's folder, for messages.

    Returns:
        Name, step, value and time of each; damaged lines are left out, and said.
    """
    try:
        entries: list[list[Any]] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        entries = []
    if len(entries) == len(lines) and all(map(_is_entry, entries)):
        return entries
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if _is_entry(entry):
            entries.append(entry)
        else:
            say(f"{place} holds a damaged line of values, which is left out: {line[:200]!r}")
    return entries


def moment(seconds: float) -> datetime.datetime:
    """Write a time as the database keeps it.

    Args:
        seconds: Seconds since 1970.

    Returns:
        The time in UTC, in milliseconds.
    """
    return _EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))


def entries_of(document: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """List the values that a document of the database holds.

    Args:
        document: A document of the collection ``metrics``.

    Returns:
        Step, value and time of each.
    """
    lists = [document.get(field, []) for field in ("steps", "values", "timestamps")]
    return zip(*lists, strict=False)


def content_of(document: Mapping[str, Any]) -> bytes:
    """Digest the values that a document of the database holds.

    Args:
        document: A document of the collection ``metrics``.

    Returns:
        The digest of their fingerprints.
    """
    digest = hashlib.blake2b(digest_size=16)
    for step, value, when in entries_of(document):
        digest.update(fingerprint(step, value, when))
    return digest.digest()


def fingerprint(step: Any, value: Any, when: datetime.datetime) -> bytes:
    """Write a value so that no other one is written the same.

    Args:
        step: Its step.
        value: The value; NaN equals itself here.
        when: Its time.

    Returns:
        Bytes for a digest.
    """
    return repr((step, value, (when - _EPOCH) // _MILLISECOND)).encode()


def _is_entry(entry: Any) -> bool:
    return (
        type(entry) is list
        and len(entry) == 4
        and type(entry[0]) is str
        and _fits(entry[1])
        and _fits(entry[2])
        and isinstance(entry[3], int | float)
        and EARLIEST < entry[3] < LATEST
    )


def _fits(value: Any) -> bool:
    """Say whether the database can hold a number, or nested lists of them."""
    if type(value) is int:
        return -INT64 <= value < INT64
    return all(map(_fits, value)) if type(value) is list else isinstance(value, float | int)
