"""Metric values: lines of the spool, pushed into MongoDB each exactly once and in order."""

from __future__ import annotations

import bisect
import datetime
import hashlib
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.clean import INT64, count_entries
from metatoolkit.records.files import Pace, bulk_write, object_id
from metatoolkit.records.spool import RunSpool
from metatoolkit.records.terminal import say

if TYPE_CHECKING:
    from pymongo.database import Database

PART, BATCH, LINES, IDS = 100_000, 20_000, 1_000, 10_000
FRUITLESS = 5
BYTES_PER_NUMBER = 48
EARLIEST, LATEST = -62_000_000_000, 253_000_000_000
_EPOCH = datetime.datetime(1970, 1, 1)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def metric_id(uuid: str, name: str, part: int) -> Any:
    """Derive the id of the document that holds one part of a run's metric."""
    return object_id(uuid, "metric", name, str(part))


class _Series:
    """One metric: the values that are not in the database yet, and where all of them belong.

    A document stays far below 16 MiB. Where each begins follows from the values and their order,
    so that every attempt finds the same.
    """

    def __init__(self) -> None:
        self.stored = 0
        self.pending: list[tuple[Any, Any, datetime.datetime]] = []
        self.parts = [0]
        self.digests = [hashlib.blake2b(digest_size=16)]
        self.summary: dict[str, Any] = {"count": 0, "last": None, "step": None}
        self._room = PART

    def take(self, step: Any, value: Any, when: datetime.datetime) -> None:
        size = count_entries(value)
        if size > self._room and self.count > self.parts[-1]:
            self.parts.append(self.count)
            self.digests.append(hashlib.blake2b(digest_size=16))
            self._room = PART
        self._room -= size
        self.pending.append((step, value, when))
        self.digests[-1].update(_fingerprint(step, value, when))
        _summarize_value(self.summary, step, value)

    @property
    def count(self) -> int:
        return self.stored + len(self.pending)

    def place(self) -> tuple[int, int, int]:
        """Return the part that the next value goes to, where that begins, and where it ends."""
        part = bisect.bisect_right(self.parts, self.stored) - 1
        end = self.parts[part + 1] if part + 1 < len(self.parts) else sys.maxsize
        return part, self.parts[part], end

    def pushed(self, count: int) -> None:
        self.stored += count
        del self.pending[:count]


class MetricPush:
    """What is known about one run's metrics in one database.

    Args:
        spool: The run's folder.
    """

    def __init__(self, spool: RunSpool) -> None:
        self.spool = spool
        self.regained = 0
        self._offset = 0
        self._series: dict[str, _Series] = defaultdict(_Series)
        self._longer: set[str] = set()
        self._known = False

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """The summaries of all metrics, by name."""
        return {name: one.summary for name, one in self._series.items()}

    def logged(self, name: str) -> Sequence[tuple[Any, ...]]:
        """Return step, value and time of what was read and not pushed."""
        return self._series[name].pending if name in self._series else []

    def documents(self, names: list[str]) -> list[dict[str, str]]:
        """Return name and id of each document of metrics, as the run's own document lists them."""
        return [
            {"name": name, "id": str(metric_id(self.spool.uuid, name, part))}
            for name in names
            for part in range(len(self._series[name].parts))
        ]

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self._known = False

    def adopt(self, database: Database[dict[str, Any]], run_id: Any) -> None:
        """Take over what an earlier number of the run has left in the database."""
        self._known = True
        for ids in _in_lots(one for one, _, _ in self._expected()):
            of_others = {"_id": {"$in": ids}, "run_id": {"$ne": run_id}}
            done = database["metrics"].update_many(of_others, {"$set": {"run_id": run_id}})
            self._known = self._known and not done.matched_count

    def same(self, database: Database[dict[str, Any]], run_id: Any) -> bool:
        """Read every value back and say whether all are there; else the next push writes them."""
        self.read()
        if any(one.pending for one in self._series.values()):
            return False
        wanted = {one: (name, digest) for one, name, digest in self._expected()}
        for found in database["metrics"].find({"run_id": run_id}):
            known = wanted.get(found["_id"])
            digest = hashlib.blake2b(digest_size=16)
            for entry in _entries_of(found) if known is not None else []:
                digest.update(_fingerprint(*entry))
            if known is not None and digest.digest() == known[1]:
                del wanted[found["_id"]]
        # What the spool has lost a part of cannot be written again.
        wrong = {name for name, _ in wanted.values()} - self._longer
        for ids in _in_lots(one for one, name, _ in self._expected() if name in wrong):
            database["metrics"].delete_many({"_id": {"$in": ids}})
        self._known = not wanted
        return not wanted

    def read(self) -> None:
        """Take in what the spool has got since the last time."""
        data = self.spool.metrics.read(self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        lines = data[:end].splitlines()
        for start in range(0, len(lines), LINES):
            for name, step, value, seconds in parse(lines[start : start + LINES], self.spool.path):
                when = _EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))
                self._series[name].take(step, value, when)

    def push(self, database: Database[dict[str, Any]], run_id: Any, pace: Pace) -> None:
        """Bring the database up to what was read.

        Args:
            database: Where it goes.
            run_id: The run.
            pace: How much is sent at once.

        Raises:
            RecordsError: The database never holds what was written to it.
        """
        fruitless = 0
        while not self._known or any(one.pending for one in self._series.values()):
            if not self._known:
                self._reconcile(database, run_id)
                continue
            operations, taken, size = self._batch(run_id, pace.size)
            with pace.sending(database, size):
                done = bulk_write(database["metrics"], operations)
            if done is None:
                self.adopt(database, run_id)
            written = done.matched_count + done.upserted_count if done is not None else 0
            self._known = written == len(operations)
            if self._known:
                fruitless = 0
                for name, take in taken.items():
                    self._series[name].pushed(take)
                continue
            fruitless += 1
            if fruitless > FRUITLESS:
                raise RecordsError(
                    f"the database does not keep what is written to it of run {self.spool.uuid}"
                )

    def _expected(self) -> Iterator[tuple[Any, str, bytes]]:
        for name, one in self._series.items():
            for part, digest in enumerate(one.digests):
                yield metric_id(self.spool.uuid, name, part), name, digest.digest()

    def _batch(self, run_id: Any, limit: int) -> tuple[list[Any], dict[str, int], int]:
        """Take as many waiting values as may be sent at once, but at least one."""
        operations: list[Any] = []
        taken: dict[str, int] = {}
        size = 0
        for name, one in self._series.items():
            most = min(len(one.pending), BATCH, one.place()[2] - one.stored)
            take = 0
            while take < most and (size < limit or not size):
                size += count_entries(one.pending[take][1]) * BYTES_PER_NUMBER
                take += 1
            if take:
                size += len(name) + 200
                operations.append(self._operation(run_id, name, one, take))
                taken[name] = take
            if size >= limit:
                break
        return operations, taken, size

    def _operation(self, run_id: Any, name: str, one: _Series, take: int) -> Any:
        """Append values to a document if it holds just those that come before them."""
        from pymongo import UpdateOne

        part, begin, _ = one.place()
        columns = zip(*one.pending[:take], strict=True)
        fields = ("steps", "values", "timestamps")
        push = {f: {"$each": list(column)} for f, column in zip(fields, columns, strict=True)}
        identity: dict[str, Any] = {"_id": metric_id(self.spool.uuid, name, part)}
        if one.stored > begin:
            length = one.stored - begin
            return UpdateOne({**identity, "steps": {"$size": length}}, {"$push": push})
        owner = {"run_id": run_id, "name": name, **({"part": part} if part else {})}
        guard = {**identity, "steps": {"$exists": False}}
        return UpdateOne(guard, {"$setOnInsert": owner, "$push": push}, upsert=True)

    def _reconcile(self, database: Database[dict[str, Any]], run_id: Any) -> None:
        lengths = metric_lengths(database, run_id)
        if any(lengths.get(name, 0) < one.stored for name, one in self._series.items()):
            # The server has forgotten values that it had acknowledged: read them all again.
            self._offset = 0
            self._series.clear()
            self.read()
        for name in {*self._series, *lengths}:
            one = self._series[name]
            there = lengths.get(name, 0)
            if there > one.count:
                # The database has values that the spool has lost.
                self._longer.add(name)
                found = database["metrics"].find({"run_id": run_id, "name": name}).sort("part", 1)
                entries = (entry for document in found for entry in _entries_of(document))
                for entry in itertools.islice(entries, one.count, None):
                    one.take(*entry)
                    self.regained += 1
            one.pushed(there - one.stored)
        self._known = True


def metric_lengths(database: Database[dict[str, Any]], run_id: Any) -> dict[str, int]:
    """Count the stored values of a run, by metric."""
    stages: list[dict[str, Any]] = [
        {"$match": {"run_id": run_id}},
        {"$project": {"name": 1, "length": {"$size": {"$ifNull": ["$steps", []]}}}},
        {"$group": {"_id": "$name", "length": {"$sum": "$length"}}},
    ]
    return {entry["_id"]: entry["length"] for entry in database["metrics"].aggregate(stages)}


def _in_lots(ids: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(ids)
    return (every[start : start + IDS] for start in range(0, len(every), IDS))


def _summarize_value(summary: dict[str, Any], step: Any, value: Any) -> None:
    summary["count"] += 1
    if not isinstance(value, bool | int | float):
        return
    summary["last"], summary["step"] = value, step
    if not math.isnan(value):
        if "min" not in summary or value < summary["min"]:
            summary["min"], summary["min_step"] = value, step
        if "max" not in summary or value > summary["max"]:
            summary["max"], summary["max_step"] = value, step


def summarize(steps: Sequence[Any], values: Sequence[Any]) -> dict[str, Any]:
    """Summarize a metric as a run does that is recorded.

    Args:
        steps: The steps.
        values: The values at them, in the order in which they were logged.

    Returns:
        ``count``, ``last``, ``step``, ``min``, ``max`` and their steps; nothing where nothing is.
    """
    summary = _Series().summary
    for step, value in zip(steps, values, strict=False):
        _summarize_value(summary, step, value)
    return summary if summary["count"] else {}


def _entries_of(document: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    lists = [document.get(field, []) for field in ("steps", "values", "timestamps")]
    return zip(*lists, strict=False)


def _fingerprint(step: Any, value: Any, when: datetime.datetime) -> bytes:
    """Write a value so that no other one is written the same; NaN equals itself here."""
    return repr((step, value, (when - _EPOCH) // _MILLISECOND)).encode()


def parse(lines: list[bytes], place: Path) -> list[list[Any]]:
    """Parse many lines in one call: the run pays for every moment that is spent here."""
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
