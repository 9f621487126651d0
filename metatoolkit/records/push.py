"""One run from its spool into MongoDB: every step may be repeated and changes nothing then."""

from __future__ import annotations

import bisect
import datetime
import hashlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.appended_file import AppendedFile
from metatoolkit.records.clean import count_entries, encode_key
from metatoolkit.records.files import CHUNK, complete, file_blocks, remove, upload
from metatoolkit.records.messages import say
from metatoolkit.records.spool import METRICS, RunSpool

if TYPE_CHECKING:
    from pymongo.database import Database

PART = 100_000
NAMES = 10_000
OUTPUT_LIMIT = 1_000_000
OUTPUT_ARTIFACT = "cout.txt"
BLOCK = 1 << 20
BATCH = 20_000
LINES = 1_000
_EPOCH = datetime.datetime(1970, 1, 1)


class Push:
    """What is known about one run's copy in one database.

    Args:
        spool: The run's folder.
        metrics: The file of metric values, open.
        output: The file of captured output, open.
    """

    def __init__(self, spool: RunSpool, metrics: AppendedFile, output: AppendedFile) -> None:
        self.spool = spool
        self.run_id: int | None = None
        self._metrics = metrics
        self._output = output
        self._offset = 0
        self._stored: dict[str, int] = {}
        self._parts: dict[str, list[int]] = {}
        self._room: dict[str, int] = {}
        self._pending: dict[str, list[list[Any]]] = {}
        self._summary: dict[str, dict[str, Any]] = {}
        self._uploaded: set[Any] = set()
        self._outdated: set[Any] = set()
        self._artifacts: set[Any] = set()
        self._fields: dict[str, int] = {}
        self._known = False
        self._shown = (0, "")

    def __call__(
        self, database: Database[dict[str, Any]], document: dict[str, Any], final: bool = False
    ) -> int:
        """Bring the database up to the spool.

        Args:
            database: Where the copy goes.
            document: The run's document as the spool has it.
            final: Write every field again, whatever was written before.

        Returns:
            The run's id in this database.
        """
        from pymongo import WriteConcern

        # Without the journal, a killed server forgets what it has acknowledged.
        database = database.with_options(write_concern=WriteConcern(w="majority", j=True))
        self._read()
        if self.run_id is None:
            self._enroll(database, document)
        if not self._known:
            self._reconcile(database)
        self._push_metrics(database)
        files = self._push_files(database, document)
        self._push_document(database, self._run_document(document, files), final)
        present = {entry["file_id"] for entry in files["artifacts"]}
        self._outdated = (self._outdated | self._artifacts) - present
        self._artifacts = present
        remove(database, self._outdated)
        self._uploaded -= self._outdated
        self._outdated = set()
        assert self.run_id is not None
        return self.run_id

    def verify(self, database: Database[dict[str, Any]], document: dict[str, Any]) -> bool:
        """Read back what was pushed.

        Args:
            database: Where the copy is.
            document: The run's document as the spool has it.

        Returns:
            Whether status, every metric's length and every artifact are there.
        """
        self._read()
        found = database["runs"].find_one({"run_uuid": self.spool.uuid})
        if found is None or found.get("status") != document["status"]:
            return False
        lengths = metric_lengths(database, found["_id"])
        expected = {
            name: self._stored.get(name, 0) + len(self._pending.get(name, []))
            for name in {*self._stored, *self._pending}
        }
        if any(lengths.get(name, 0) != count for name, count in expected.items() if count):
            self._known = False
            return False
        ids = [entry["file_id"] for entry in found.get("artifacts", [])]
        ids += [source[1] for source in found.get("experiment", {}).get("sources", [])]
        return complete(database, ids)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Read the spool's metrics and say for each its count, last, smallest and largest value.

        Returns:
            One entry per metric.
        """
        self._read()
        return self._summary

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self._known = False
        self._fields.clear()
        self._uploaded.clear()

    def _read(self) -> None:
        data = self._metrics.read(self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        lines = data[:end].splitlines()
        for start in range(0, len(lines), LINES):
            for name, step, value, seconds in self._entries(lines[start : start + LINES]):
                when = _EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))
                self._pending.setdefault(name, []).append([step, value, when])
                self._assign(name, value)
                self._summarize(name, step, value)

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

    def _summarize(self, name: str, step: Any, value: Any) -> None:
        entry = self._summary.get(name)
        if entry is None:
            entry = self._summary[name] = {"count": 0, "last": None, "step": None}
        entry["count"] += 1
        if isinstance(value, list):
            return
        entry["last"], entry["step"] = value, step
        if not math.isnan(value):
            if "min" not in entry or value < entry["min"]:
                entry["min"], entry["min_step"] = value, step
            if "max" not in entry or value > entry["max"]:
                entry["max"], entry["max_step"] = value, step

    def _enroll(self, database: Database[dict[str, Any]], document: dict[str, Any]) -> None:
        from pymongo.errors import DuplicateKeyError

        runs = database["runs"]
        ensure_indexes(database)
        while True:
            found = runs.find_one({"run_uuid": self.spool.uuid}, {"_id": 1})
            if found is not None:
                self.run_id = found["_id"]
                return
            number = next_id(database)
            first = {
                "_id": number,
                "run_uuid": self.spool.uuid,
                "status": document["status"],
                "start_time": document["start_time"],
            }
            try:
                runs.insert_one(first)
            except DuplicateKeyError:
                # Somebody else numbers runs here too, and has just taken this one.
                continue
            self.run_id = number
            self._known = True
            return

    def _reconcile(self, database: Database[dict[str, Any]]) -> None:
        lengths = metric_lengths(database, self.run_id)
        for name, pending in self._pending.items():
            behind = lengths.get(name, 0) - self._stored.get(name, 0)
            if behind >= 0:
                del pending[:behind]
                self._stored[name] = lengths.get(name, 0)
        lost = [name for name, count in self._stored.items() if lengths.get(name, 0) < count]
        if lost:
            # The server has forgotten values that it had acknowledged: read them all again.
            self._offset = 0
            self._stored, self._pending, self._summary = {}, {}, {}
            self._parts, self._room = {}, {}
            self._read()
            for name, pending in self._pending.items():
                self._stored[name] = lengths.get(name, 0)
                del pending[: lengths.get(name, 0)]
        self._known = True

    def _push_metrics(self, database: Database[dict[str, Any]]) -> None:
        from pymongo.errors import BulkWriteError

        while any(self._pending.values()):
            operations = []
            taken: dict[str, int] = {}
            for name, pending in self._pending.items():
                stored = self._stored.get(name, 0)
                take = min(len(pending), BATCH, self._part(name, stored)[1] - stored)
                if take:
                    operations.append(self._operation(name, stored, pending[:take]))
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
                self._reconcile(database)

    def _operation(self, name: str, stored: int, entries: list[list[Any]]) -> Any:
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
        owner: dict[str, Any] = {"run_id": self.run_id, "name": name}
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

    def _push_files(
        self, database: Database[dict[str, Any]], document: dict[str, Any]
    ) -> dict[str, Any]:
        """Upload artifacts and sources; return the ids by kind, in the schema's own layout."""
        sources = []
        missing = []
        for entry in document["experiment"].get("sources", []):
            file_id = object_id("source", entry["sha256"])
            if self._upload(database, entry["sha256"], file_id, filename=entry["path"]):
                sources.append([entry["name"], file_id])
            else:
                missing.append(entry["name"])
        artifacts = []
        for entry in document["artifacts"]:
            file_id = object_id(self.spool.uuid, "artifact", entry["sha256"])
            filename = f"artifact://runs/{self.run_id}/{entry['name']}"
            content_type = entry.get("content_type")
            metadata = {"run_uuid": self.spool.uuid, "sha256": entry["sha256"]}
            extra = {"metadata": metadata, "contentType": content_type}
            if self._upload(database, entry["sha256"], file_id, filename=filename, **extra):
                artifacts.append({**entry, "file_id": file_id})
            else:
                missing.append(entry["name"])
        if self._output.size() > OUTPUT_LIMIT and document["status"] != "RUNNING":
            artifacts.append(self._push_output(database))
        return {"sources": sources, "artifacts": artifacts, "missing": missing}

    def _push_output(self, database: Database[dict[str, Any]]) -> dict[str, Any]:
        digest = hashlib.sha256()
        size = self._output.size()
        for offset in range(0, size, BLOCK):
            digest.update(self._output.read(offset, BLOCK))
        file_id = object_id(self.spool.uuid, "artifact", digest.hexdigest())
        if file_id not in self._uploaded:
            metadata = {"run_uuid": self.spool.uuid, "sha256": digest.hexdigest()}
            extra = {"metadata": metadata, "contentType": "text/plain"}
            filename = f"artifact://runs/{self.run_id}/{OUTPUT_ARTIFACT}"
            blocks = (self._output.read(offset, CHUNK) for offset in range(0, size, CHUNK))
            upload(database, file_id, blocks, filename=filename, **extra)
            self._uploaded.add(file_id)
        return {"name": OUTPUT_ARTIFACT, "file_id": file_id, "size": size}

    def _upload(
        self, database: Database[dict[str, Any]], digest: str, file_id: Any, **entry: Any
    ) -> bool:
        if file_id not in self._uploaded:
            path = self.spool.file(digest)
            if not path.exists():
                return False
            upload(database, file_id, file_blocks(path), **entry)
            self._uploaded.add(file_id)
        return True

    def _run_document(self, document: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
        every = sorted({*self._stored, *self._pending})
        # With a name for every step, say, the document would outgrow what MongoDB takes.
        names = every[:NAMES]
        metrics = [
            {"name": name, "id": str(metric_id(self.spool.uuid, name, part))}
            for name in names
            for part in range(len(self._parts[name]))
        ]
        result = {key: value for key, value in document.items() if key != "output"}
        result["experiment"] = {**document["experiment"], "sources": files["sources"]}
        result["artifacts"] = files["artifacts"]
        if files["missing"]:
            result["missing_files"] = files["missing"]
        if metrics and isinstance(document["info"], dict):
            result["info"] = {**document["info"], "metrics": metrics[: 2 * NAMES]}
        result["captured_out"] = self._captured_output()
        result["summary"] = {encode_key(name): self._summary[name] for name in names}
        if len(every) > NAMES:
            result["unlisted_metrics"] = len(every) - NAMES
        return result

    def _captured_output(self) -> str:
        size = self._output.size()
        if size != self._shown[0]:
            if size <= 4 * OUTPUT_LIMIT:
                text = shorten(self._output.read(0))
            else:
                ends = self._output.read(0, OUTPUT_LIMIT) + self._output.read(size - OUTPUT_LIMIT)
                text = shorten(ends, left_out=size - 2 * OUTPUT_LIMIT)
            self._shown = size, text
        return self._shown[1]

    def _push_document(
        self, database: Database[dict[str, Any]], document: dict[str, Any], final: bool
    ) -> None:
        prints = {field: hash(repr(value)) for field, value in document.items()}
        changed = {
            field: value
            for field, value in document.items()
            if final or self._fields.get(field) != prints[field]
        }
        if changed:
            done = database["runs"].update_one({"_id": self.run_id}, {"$set": changed})
            if not done.matched_count:
                self.run_id = None
                raise RecordsError(f"run {document['run_uuid']} has been deleted from the database")
            self._fields.update({field: prints[field] for field in changed})


def object_id(*parts: str) -> Any:
    """Derive the same id from the same content, on every attempt.

    Args:
        parts: What identifies the stored thing.

    Returns:
        A ``bson.ObjectId``.
    """
    from bson import ObjectId

    return ObjectId(hashlib.sha256("\0".join(parts).encode("utf-8")).digest()[:12])


def metric_id(uuid: str, name: str, part: int) -> Any:
    """Derive the id of a metric's document.

    Args:
        uuid: The run's own id.
        name: The metric's name.
        part: Which hundred thousand values.

    Returns:
        A ``bson.ObjectId``.
    """
    return object_id(uuid, "metric", name, str(part))


def next_id(database: Database[dict[str, Any]]) -> int:
    """Reserve the number of a new run.

    Args:
        database: The database.

    Returns:
        A number above all that are in use; no other process gets the same one.
    """
    from pymongo import ReturnDocument
    from pymongo.errors import DuplicateKeyError

    runs, counters = database["runs"], database["counters"]
    while True:
        try:
            counter = counters.find_one_and_update(
                {"_id": "runs"},
                {"$inc": {"last": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            # Two processes have created the counter at once; now it is there for both.
            continue
        assert counter is not None
        number = int(counter["last"])
        if runs.find_one({"_id": number}, {"_id": 1}) is None:
            return number
        largest = runs.find_one({"_id": {"$type": "number"}}, {"_id": 1}, sort=[("_id", -1)])
        top = int(largest["_id"]) if largest is not None else 0
        counters.update_one({"_id": "runs"}, {"$max": {"last": top}})


def ensure_indexes(database: Database[dict[str, Any]]) -> None:
    """Create the indexes that queries and uniqueness rest on; existing ones are left alone.

    Args:
        database: The database.
    """
    runs, metrics = database["runs"], database["metrics"]
    # Partial: documents that Sacred's own observer wrote have no run_uuid.
    only_ours = {"run_uuid": {"$exists": True}}
    runs.create_index("run_uuid", unique=True, partialFilterExpression=only_ours)
    runs.create_index("start_time")
    runs.create_index("experiment.name")
    runs.create_index("status")
    metrics.create_index([("run_id", 1), ("name", 1)])
    database["fs.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
    database["fs.files"].create_index([("filename", 1), ("uploadDate", 1)])


def shorten(output: bytes, left_out: int = 0) -> str:
    """Cut captured output to what a document should hold, keeping its beginning and its end.

    Args:
        output: The whole output, or its beginning and its end.
        left_out: How many bytes are missing between them.

    Returns:
        Text without overwritten progress bars, of about one megabyte at most.
    """
    text = output.decode("utf-8", "replace")
    if "\r" in text:
        lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        text = "\n".join(lines)
    if len(text) <= OUTPUT_LIMIT and not left_out:
        return text
    half = min(OUTPUT_LIMIT, len(text)) // 2
    left_out += len(text) - 2 * half
    note = f"[... {left_out} characters: see the artifact {OUTPUT_ARTIFACT} ...]"
    return f"{text[:half]}\n{note}\n{text[-half:]}"


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
