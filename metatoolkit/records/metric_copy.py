"""The metrics of one run from its spool into MongoDB, each value exactly once and in order."""

from __future__ import annotations

import bisect
import datetime
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.records.appended_file import AppendedFile
from metatoolkit.records.clean import count_entries
from metatoolkit.records.identities import metric_id
from metatoolkit.records.messages import say
from metatoolkit.records.spool import METRICS, RunSpool

if TYPE_CHECKING:
    from pymongo.database import Database

PART = 100_000
BATCH = 20_000
LINES = 1_000
_EPOCH = datetime.datetime(1970, 1, 1)


class MetricCopy:
    """What is known about the copy of one run's metrics in one database.

    Args:
        spool: The run's folder.
        values: The file of metric values, open.
    """

    def __init__(self, spool: RunSpool, values: AppendedFile) -> None:
        self.spool = spool
        self.summary: dict[str, dict[str, Any]] = {}
        self._values = values
        self._offset = 0
        self._stored: dict[str, int] = {}
        self._parts: dict[str, list[int]] = {}
        self._room: dict[str, int] = {}
        self._pending: dict[str, list[list[Any]]] = {}
        self._known = False

    def names(self) -> list[str]:
        """List the metrics.

        Returns:
            Their names, in alphabetical order.
        """
        return sorted({*self._stored, *self._pending})

    def documents(self, names: list[str]) -> list[dict[str, str]]:
        """List the documents that metrics are kept in.

        Args:
            names: The metrics.

        Returns:
            Name and id of each document, as the run's own document lists them.
        """
        return [
            {"name": name, "id": str(metric_id(self.spool.uuid, name, part))}
            for name in names
            for part in range(len(self._parts[name]))
        ]

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self._known = False

    def begin(self) -> None:
        """Note that the run is new to the database, which holds nothing of it."""
        self._known = True

    def complete(self, database: Database[dict[str, Any]], run_id: Any) -> bool:
        """Read back how many values of each metric the database holds.

        Args:
            database: Where the copy is.
            run_id: The run.

        Returns:
            Whether all of them are there; if not, the next push finds out which.
        """
        self.read()
        lengths = metric_lengths(database, run_id)
        expected = {
            name: self._stored.get(name, 0) + len(self._pending.get(name, []))
            for name in self.names()
        }
        if any(lengths.get(name, 0) != count for name, count in expected.items() if count):
            self._known = False
            return False
        return True

    def read(self) -> None:
        """Take in what the spool has got since the last time."""
        data = self._values.read(self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        lines = data[:end].splitlines()
        for start in range(0, len(lines), LINES):
            for name, step, value, seconds in self._entries(lines[start : start + LINES]):
                when = _EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))
                self._pending.setdefault(name, []).append([step, value, when])
                self._assign(name, value)
                summarize_value(self.summary, name, step, value)

    def push(self, database: Database[dict[str, Any]], run_id: Any) -> None:
        """Bring the database up to what was read.

        Args:
            database: Where the copy goes.
            run_id: The run.
        """
        from pymongo.errors import BulkWriteError

        if not self._known:
            self._reconcile(database, run_id)
        while any(self._pending.values()):
            operations = []
            taken: dict[str, int] = {}
            for name, pending in self._pending.items():
                stored = self._stored.get(name, 0)
                take = min(len(pending), BATCH, self._part(name, stored)[1] - stored)
                if take:
                    operations.append(self._operation(run_id, name, stored, pending[:take]))
                    taken[name] = take
            try:
                done = database["metrics"].bulk_write(operations, ordered=False)
            except BulkWriteError as error:
                # 11000: another attempt, whose answer was lost, had already created the document.
                if any(entry.get("code") != 11000 for entry in error.details["writeErrors"]):
                    raise
                self._known = False
            else:
                self._known = done.matched_count + done.upserted_count == len(operations)
            if self._known:
                for name, take in taken.items():
                    self._stored[name] = self._stored.get(name, 0) + take
                    del self._pending[name][:take]
            else:
                self._reconcile(database, run_id)

    def _entries(self, lines: list[bytes]) -> list[list[Any]]:
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
                say(
                    f"{self.spool.path}/{METRICS} holds a damaged line, which is left out: {line!r}"
                )
        return entries

    def _assign(self, name: str, value: Any) -> None:
        """Give a value its place in a document that stays far below 16 MiB.

        It follows from the order of the values alone, so that every attempt finds the same.
        """
        size = count_entries(value) if isinstance(value, list) else 1
        room = self._room.get(name, PART)
        parts = self._parts.get(name)
        if parts is None:
            parts = self._parts[name] = [0]
        if size > room:
            count = self._stored.get(name, 0) + len(self._pending[name])
            if count - 1 > parts[-1]:
                parts.append(count - 1)
                room = PART
        self._room[name] = room - size

    def _reconcile(self, database: Database[dict[str, Any]], run_id: Any) -> None:
        lengths = metric_lengths(database, run_id)
        for name, pending in self._pending.items():
            behind = lengths.get(name, 0) - self._stored.get(name, 0)
            if behind >= 0:
                del pending[:behind]
                self._stored[name] = lengths.get(name, 0)
        lost = [name for name, count in self._stored.items() if lengths.get(name, 0) < count]
        if lost:
            # The server has forgotten values that it had acknowledged: read them all again.
            self._offset = 0
            self._stored, self._pending, self.summary = {}, {}, {}
            self._parts, self._room = {}, {}
            self.read()
            for name, pending in self._pending.items():
                self._stored[name] = lengths.get(name, 0)
                del pending[: lengths.get(name, 0)]
        self._known = True

    def _operation(self, run_id: Any, name: str, stored: int, entries: list[list[Any]]) -> Any:
        from pymongo import UpdateOne

        part, _ = self._part(name, stored)
        length = stored - self._parts[name][part]
        push = {
            field: {"$each": [entry[index] for entry in entries]}
            for index, field in enumerate(("steps", "values", "timestamps"))
        }
        identity: dict[str, Any] = {"_id": metric_id(self.spool.uuid, name, part)}
        if length:
            return UpdateOne({**identity, "steps": {"$size": length}}, {"$push": push})
        owner: dict[str, Any] = {"run_id": run_id, "name": name}
        if part:
            owner["part"] = part
        guard = {**identity, "steps": {"$exists": False}}
        return UpdateOne(guard, {"$setOnInsert": owner, "$push": push}, upsert=True)

    def _part(self, name: str, position: int) -> tuple[int, int]:
        """Say in which document a value lies, and where the next one begins."""
        parts = self._parts[name]
        part = bisect.bisect_right(parts, position) - 1
        end = parts[part + 1] if part + 1 < len(parts) else sys.maxsize
        return part, end


def metric_lengths(database: Database[dict[str, Any]], run_id: Any) -> dict[str, int]:
    """Count the stored values of a run.

    Args:
        database: The database.
        run_id: The run.

    Returns:
        The number of values by metric.
    """
    stages: list[dict[str, Any]] = [
        {"$match": {"run_id": run_id}},
        {"$project": {"name": 1, "length": {"$size": {"$ifNull": ["$steps", []]}}}},
        {"$group": {"_id": "$name", "length": {"$sum": "$length"}}},
    ]
    return {entry["_id"]: entry["length"] for entry in database["metrics"].aggregate(stages)}


def _is_entry(entry: Any) -> bool:
    return (
        type(entry) is list
        and len(entry) == 4
        and type(entry[0]) is str
        and isinstance(entry[2], int | float | list)
        and isinstance(entry[3], int | float)
    )


def summarize_value(summary: dict[str, dict[str, Any]], name: str, step: Any, value: Any) -> None:
    """Take a value of a metric into its summary.

    Args:
        summary: Summaries by metric; changed.
        name: The metric.
        step: The value's step.
        value: The value; of arrays only the number of values is kept.
    """
    entry = summary.get(name)
    if entry is None:
        entry = summary[name] = {"count": 0, "last": None, "step": None}
    entry["count"] += 1
    if not isinstance(value, bool | int | float):
        return
    entry["last"], entry["step"] = value, step
    if not math.isnan(value):
        if "min" not in entry or value < entry["min"]:
            entry["min"], entry["min_step"] = value, step
        if "max" not in entry or value > entry["max"]:
            entry["max"], entry["max_step"] = value, step


def summarize(steps: Sequence[Any], values: Sequence[Any]) -> dict[str, Any]:
    """Summarize a metric as a run does that is recorded.

    Args:
        steps: The steps.
        values: The values at them, in the order in which they were logged.

    Returns:
        ``count``, ``last``, ``step``, ``min``, ``max`` and their steps.
    """
    summary: dict[str, dict[str, Any]] = {}
    for step, value in zip(steps, values, strict=False):
        summarize_value(summary, "", step, value)
    return summary.get("", {})
