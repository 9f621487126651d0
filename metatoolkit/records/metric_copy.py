"""The metrics of one run from its spool into MongoDB, each value exactly once and in order."""

from __future__ import annotations

import bisect
import datetime
import hashlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.appended_file import AppendedFile
from metatoolkit.records.clean import count_entries
from metatoolkit.records.files import Pace, metric_id
from metatoolkit.records.spool import RunSpool

if TYPE_CHECKING:
    from pymongo.database import Database
from metatoolkit.records.appended_file import content_of, entries_of, fingerprint, moment, parse

PART = 100_000
BATCH = 20_000
LINES = 1_000
FRUITLESS = 5
IDS = 10_000
BYTES_PER_NUMBER = 48


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
        self._digests: dict[str, list[Any]] = {}
        self._longer: set[str] = set()
        self.regained = 0
        self._known = False

    def names(self) -> list[str]:
        """List the metrics.

        Returns:
            Their names, in alphabetical order.
        """
        return sorted({*self._stored, *self._pending})

    def logged(self, name: str) -> list[list[Any]]:
        """List the values that were read and not pushed, which are all of a copy that never was.

        Args:
            name: The metric.

        Returns:
            Step, value and time of each.
        """
        return self._pending.get(name, [])

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

    def adopt(self, database: Database[dict[str, Any]], run_id: Any) -> None:
        """Take over what an earlier number of the run has left in the database.

        Args:
            database: Where the copy is.
            run_id: The run's number now.
        """
        ids = [one for one, _, _ in self._expected()]
        self._known = True
        for start in range(0, len(ids), IDS):
            of_others = {"_id": {"$in": ids[start : start + IDS]}, "run_id": {"$ne": run_id}}
            done = database["metrics"].update_many(of_others, {"$set": {"run_id": run_id}})
            self._known = self._known and not done.matched_count

    def same(self, database: Database[dict[str, Any]], run_id: Any) -> bool:
        """Read back every value that the database holds.

        Args:
            database: Where the copy is.
            run_id: The run.

        Returns:
            Whether they are those that were logged; if not, the next push writes them again.
        """
        self.read()
        wanted = {one: (name, digest) for one, name, digest in self._expected()}
        if any(self._pending.values()):
            return False
        for found in database["metrics"].find({"run_id": run_id}):
            known = wanted.get(found["_id"])
            if known is not None and content_of(found) == known[1]:
                del wanted[found["_id"]]
        # What the spool has lost a part of cannot be written again.
        wrong = {name for name, _ in wanted.values()} - self._longer
        ids = [one for one, name, _ in self._expected() if name in wrong]
        for start in range(0, len(ids), IDS):
            database["metrics"].delete_many({"_id": {"$in": ids[start : start + IDS]}})
        self._known = not wanted
        return not wanted

    def read(self) -> None:
        """Take in what the spool has got since the last time."""
        data = self._values.read(self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        lines = data[:end].splitlines()
        for start in range(0, len(lines), LINES):
            for name, step, value, seconds in parse(lines[start : start + LINES], self.spool.path):
                when = moment(seconds)
                self._take_in(name, step, value, when)

    def push(self, database: Database[dict[str, Any]], run_id: Any, pace: Pace) -> None:
        """Bring the database up to what was read.

        Args:
            database: Where the copy goes.
            run_id: The run.
            pace: How much is sent at once.

        Raises:
            RecordsError: The database never holds what was written to it.
        """
        from pymongo.errors import BulkWriteError

        if not self._known:
            self._reconcile(database, run_id)
        fruitless = 0
        while any(self._pending.values()):
            operations, taken, size = self._batch(run_id, pace.size)
            try:
                with pace.sending(database, size):
                    done = database["metrics"].bulk_write(operations, ordered=False)
            except BulkWriteError as error:
                # 11000: another attempt, whose answer was lost, had already created the document.
                if any(entry.get("code") != 11000 for entry in error.details["writeErrors"]):
                    raise
                self.adopt(database, run_id)
                self._known = False
            else:
                self._known = done.matched_count + done.upserted_count == len(operations)
            if self._known:
                fruitless = 0
                for name, take in taken.items():
                    self._stored[name] = self._stored.get(name, 0) + take
                    del self._pending[name][:take]
                continue
            fruitless += 1
            if fruitless > FRUITLESS:
                raise RecordsError(
                    f"the database does not keep what is written to it of run {self.spool.uuid}"
                )
            self._reconcile(database, run_id)

    def _batch(self, run_id: Any, limit: int) -> tuple[list[Any], dict[str, int], int]:
        """Take as many waiting values as may be sent at once, but at least one."""
        operations: list[Any] = []
        taken: dict[str, int] = {}
        size = 0
        for name, pending in self._pending.items():
            stored = self._stored.get(name, 0)
            most = min(len(pending), BATCH, self._part(name, stored)[1] - stored)
            take = 0
            while take < most and (size < limit or not size):
                value = pending[take][1]
                numbers = count_entries(value) if isinstance(value, list) else 1
                size += numbers * BYTES_PER_NUMBER
                take += 1
            if take:
                size += len(name) + 200
                operations.append(self._operation(run_id, name, stored, pending[:take]))
                taken[name] = take
            if size >= limit:
                break
        return operations, taken, size

    def _take_in(self, name: str, step: Any, value: Any, when: datetime.datetime) -> None:
        self._pending.setdefault(name, []).append([step, value, when])
        self._assign(name, value)
        _summarize_value(self.summary, name, step, value)
        digests = self._digests.setdefault(name, [])
        while len(digests) < len(self._parts[name]):
            digests.append(hashlib.blake2b(digest_size=16))
        digests[-1].update(fingerprint(step, value, when))

    def _expected(self) -> Iterator[tuple[Any, str, bytes]]:
        for name, digests in self._digests.items():
            for part, digest in enumerate(digests):
                yield metric_id(self.spool.uuid, name, part), name, digest.digest()

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
        if any(lengths.get(name, 0) < count for name, count in self._stored.items()):
            # The server has forgotten values that it had acknowledged: read them all again.
            self._offset = 0
            for state in (self._stored, self._pending, self.summary, self._digests):
                state.clear()
            self._parts, self._room = {}, {}
            self.read()
        for name in {*self._pending, *lengths}:
            there, stored = lengths.get(name, 0), self._stored.get(name, 0)
            if there > stored + len(self._pending.get(name, [])):
                self._read_longer(database, run_id, name)
            del self._pending.get(name, [])[: there - stored]
            self._stored[name] = there
        self._known = True

    def _read_longer(self, database: Database[dict[str, Any]], run_id: Any, name: str) -> None:
        """Take in the values of a metric that the database has and the spool has lost."""
        self._longer.add(name)
        known = self._stored.get(name, 0) + len(self._pending.get(name, []))
        found = database["metrics"].find({"run_id": run_id, "name": name}).sort("part", 1)
        entries = (entry for document in found for entry in entries_of(document))
        for step, value, when in itertools.islice(entries, known, None):
            self._take_in(name, step, value, when)
            self.regained += 1

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


def _summarize_value(summary: dict[str, dict[str, Any]], name: str, step: Any, value: Any) -> None:
    """Take a value of a metric into its summary."""
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
        _summarize_value(summary, "", step, value)
    return summary.get("", {})
