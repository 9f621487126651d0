"""One run from its spool into MongoDB: every step may be repeated and changes nothing then."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.appended_file import AppendedFile
from metatoolkit.records.clean import encode_key
from metatoolkit.records.files import CHUNK, complete, file_blocks, remove, upload
from metatoolkit.records.identities import ensure_indexes, next_id, object_id
from metatoolkit.records.metric_copy import MetricCopy
from metatoolkit.records.spool import RunSpool

if TYPE_CHECKING:
    from pymongo.database import Database

NAMES = 10_000
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
        self.metrics.read()
        if self.run_id is None:
            self._enroll(database, document)
        self.metrics.push(database, self.run_id)
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
        found = database["runs"].find_one({"run_uuid": self.spool.uuid})
        if found is None or found.get("status") != document["status"]:
            return False
        if not self.metrics.complete(database, found["_id"]):
            return False
        ids = [entry["file_id"] for entry in found.get("artifacts", [])]
        ids += [source[1] for source in found.get("experiment", {}).get("sources", [])]
        return complete(database, ids)

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self.metrics.forget()
        self._fields.clear()
        self._uploaded.clear()

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
            self.metrics.begin()
            return

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
        every = self.metrics.names()
        # With a name for every step, say, the document would outgrow what MongoDB takes.
        names = every[:NAMES]
        metrics = self.metrics.documents(names)
        result = {key: value for key, value in document.items() if key != "output"}
        result["experiment"] = {**document["experiment"], "sources": files["sources"]}
        result["artifacts"] = files["artifacts"]
        if files["missing"]:
            result["missing_files"] = files["missing"]
        if metrics and isinstance(document["info"], dict):
            result["info"] = {**document["info"], "metrics": metrics[: 2 * NAMES]}
        result["captured_out"] = self._captured_output()
        result["summary"] = {encode_key(name): self.metrics.summary[name] for name in names}
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
