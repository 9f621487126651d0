"""One run from its spool into MongoDB: every step may be repeated and changes nothing then."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.appended_file import AppendedFile
from metatoolkit.records.clean import encode_key
from metatoolkit.records.fields import duration
from metatoolkit.records.files import (
    CHUNK,
    Pace,
    content_digest,
    ensure_indexes,
    file_blocks,
    holds,
    next_id,
    object_id,
    remove,
    upload,
)
from metatoolkit.records.metric_copy import MetricCopy
from metatoolkit.records.spool import RunSpool, utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

NAMES = 10_000
NAMES_LENGTH = 1_000_000
ENROLLMENTS = 100
SIGN_SECONDS = 5.0
_NEVER = datetime.datetime.min
OUTPUT_LIMIT = 1_000_000
OUTPUT_ARTIFACT = "cout.txt"
BLOCK = 1 << 20


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
        self.metrics = MetricCopy(spool, metrics)
        self._output = output
        self._uploaded: set[Any] = set()
        self._outdated: set[Any] = set()
        self._artifacts: set[Any] = set()
        self._fields: dict[str, int] = {}
        self._shown = (0, "")
        self._pace = Pace()
        self._contents: dict[Any, Path] = {}
        self._whole_output: Any = None
        self._pushed: dict[str, Any] = {}
        self._signed = 0.0

    def __call__(
        self,
        database: Database[dict[str, Any]],
        document: dict[str, Any],
        final: bool = False,
        former: Mapping[str, Any] | None = None,
    ) -> int:
        """Bring the database up to the spool.

        Args:
            database: Where the copy goes.
            document: The run's document as the spool has it.
            final: Write every field again, whatever was written before.
            former: The run's document in the database, where it may know more than the spool.

        Returns:
            The run's id in this database.
        """
        from pymongo import WriteConcern

        # Without the journal, a killed server forgets what it has acknowledged.
        database = database.with_options(write_concern=WriteConcern(w="majority", j=True))
        self.metrics.read()
        if self.run_id is None:
            self._enroll(database, document)
        if document["status"] == "RUNNING":
            self._pace.after = lambda: self._sign_of_life(database)
        self.metrics.push(database, self.run_id, self._pace)
        files = self._push_files(database, document)
        self._pushed = self._run_document(document, files)
        if former is not None:
            self._pushed = _not_less(self._pushed, former)
        self._push_document(database, self._pushed, final)
        present = {entry["file_id"] for entry in files["artifacts"]}
        self._outdated = (self._outdated | self._artifacts) - present
        self._artifacts = present
        remove(database, self._outdated)
        self._uploaded -= self._outdated
        self._outdated = set()
        assert self.run_id is not None
        return self.run_id

    def verify(self, database: Database[dict[str, Any]], document: dict[str, Any]) -> bool:
        """Read back what was pushed, and compare its content.

        Args:
            database: Where the copy is.
            document: The run's document as the spool has it.

        Returns:
            Whether every field, every metric value and every file is there and the same. What is
            not is written again by the next push.
        """
        from bson import encode

        found = database["runs"].find_one({"run_uuid": self.spool.uuid})
        if found is None:
            return False
        for field, value in self._pushed.items():
            if field not in found or encode({"": found[field]}) != encode({"": value}):
                return False
        damaged = [one for one in self._file_ids() if not self._same_file(database, one)]
        remove(database, damaged)
        return self.metrics.same(database, found["_id"]) and not damaged

    def _file_ids(self) -> list[Any]:
        ids = [entry["file_id"] for entry in self._pushed.get("artifacts", [])]
        return ids + [one[1] for one in self._pushed.get("experiment", {}).get("sources", [])]

    def _same_file(self, database: Database[dict[str, Any]], file_id: Any) -> bool:
        blocks: Iterator[bytes]
        if file_id == self._whole_output:
            size = self._output.size()
            blocks = (self._output.read(at, BLOCK) for at in range(0, size, BLOCK))
        elif file_id in self._contents and self._contents[file_id].exists():
            size = self._contents[file_id].stat().st_size
            blocks = file_blocks(self._contents[file_id])
        else:
            # The spool has lost it, and the database has it from before.
            return holds(database, file_id)
        digest = hashlib.md5(usedforsecurity=False)
        for block in blocks:
            digest.update(block)
        return content_digest(database, file_id, size) == digest.hexdigest()

    def _sign_of_life(self, database: Database[dict[str, Any]]) -> None:
        """Say that the run goes on, as it takes long to send what it has."""
        if time.monotonic() - self._signed > SIGN_SECONDS:
            self._signed = time.monotonic()
            beat = {"$set": {"heartbeat": utcnow()}}
            database["runs"].update_one({"_id": self.run_id}, beat)

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self.metrics.forget()
        self._fields.clear()
        self._uploaded.clear()

    def _enroll(self, database: Database[dict[str, Any]], document: dict[str, Any]) -> None:
        from pymongo.errors import DuplicateKeyError

        runs = database["runs"]
        ensure_indexes(database)
        for _ in range(ENROLLMENTS):
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
            # Of a run whose document was deleted, values may be left under its former number.
            self.metrics.adopt(database, number)
            return
        raise RecordsError(f"no number can be had for run {self.spool.uuid}")

    def _push_files(
        self, database: Database[dict[str, Any]], document: dict[str, Any]
    ) -> dict[str, Any]:
        """Upload artifacts and sources; return the ids by kind, in the schema's own layout."""
        sources = []
        missing = []
        for entry in document["experiment"].get("sources", []):
            file_id = object_id("source", entry["sha256"])
            if self._upload(database, entry["sha256"], file_id, {"filename": entry["path"]}):
                sources.append([entry["name"], file_id])
            else:
                missing.append(entry["name"])
        artifacts = []
        for entry in document["artifacts"]:
            file_id = object_id(self.spool.uuid, "artifact", entry["sha256"])
            filename = f"artifact://runs/{self.run_id}/{entry['name']}"
            content_type = entry.get("content_type")
            metadata = {"run_uuid": self.spool.uuid, "sha256": entry["sha256"]}
            extra = {"filename": filename, "metadata": metadata, "contentType": content_type}
            if self._upload(database, entry["sha256"], file_id, extra):
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
        self._whole_output = file_id
        if file_id not in self._uploaded:
            metadata = {"run_uuid": self.spool.uuid, "sha256": digest.hexdigest()}
            filename = f"artifact://runs/{self.run_id}/{OUTPUT_ARTIFACT}"
            extra = {"filename": filename, "metadata": metadata, "contentType": "text/plain"}
            blocks = (self._output.read(offset, CHUNK) for offset in range(0, size, CHUNK))
            upload(database, file_id, blocks, extra, self._pace)
            self._uploaded.add(file_id)
        return {"name": OUTPUT_ARTIFACT, "file_id": file_id, "size": size}

    def _upload(
        self, database: Database[dict[str, Any]], digest: str, file_id: Any, entry: dict[str, Any]
    ) -> bool:
        if file_id not in self._uploaded:
            path = self.spool.file(digest)
            if not path.exists():
                return holds(database, file_id)
            self._contents[file_id] = path
            upload(database, file_id, file_blocks(path), entry, self._pace)
            self._uploaded.add(file_id)
        return True

    def _run_document(self, document: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
        every = self.metrics.names()
        # With a name for every step, say, the document would outgrow what MongoDB takes.
        lengths = itertools.accumulate(len(name) for name in every)
        names = [name for name, length in zip(every, lengths, strict=True) if length < NAMES_LENGTH]
        names = names[:NAMES]
        metrics = self.metrics.documents(names)
        result = {key: value for key, value in document.items() if key != "output"}
        result["experiment"] = {**document["experiment"], "sources": files["sources"]}
        result["artifacts"] = files["artifacts"]
        missing = [*document.get("missing_files", []), *files["missing"]]
        result.pop("missing_files", None)
        if missing:
            result["missing_files"] = list(dict.fromkeys(missing))
        lost = result.pop("lost", None)
        if lost is not None and document["status"] != "RUNNING":
            # What the disk did not take the database may have.
            lost = {**lost, "values": max(0, lost["values"] - self.metrics.regained)}
            if any(lost.values()):
                result["lost"] = lost
        if metrics and isinstance(document["info"], dict):
            result["info"] = {**document["info"], "metrics": metrics[: 2 * NAMES]}
        result["captured_out"] = self._captured_output()
        result["summary"] = {encode_key(name): self.metrics.summary[name] for name in names}
        if len(every) > len(names):
            result["unlisted_metrics"] = len(every) - len(names)
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


def _not_less(document: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Leave what the database knows and the spool has lost, as after a power failure."""
    result = dict(document)
    if former.get("beats", 0) > document.get("beats", 0):
        ended = former.get("status") != "RUNNING"
        kept = {"summary", "unlisted_metrics"}
        kept |= set() if ended else {"status", "status_note", "stop_time", "duration"}
        result = {field: value for field, value in document.items() if field in kept}
        info = former.get("info")
        if not ended:
            # It was heard of later than the spool tells.
            result["stop_time"] = max(result["stop_time"], former.get("heartbeat") or _NEVER)
            result["duration"] = duration({**former, "stop_time": result["stop_time"]})
        if isinstance(info, Mapping) and "metrics" in document.get("info", {}):
            result["info"] = {**info, "metrics": document["info"]["metrics"]}
    elif len(str(former.get("captured_out", ""))) > len(document["captured_out"]):
        del result["captured_out"]
    return result


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
