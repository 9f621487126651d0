"""Files in the database: pushed in pieces, continued where they were cut off, and read back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.records.spool import RunSpool, utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

CHUNK = 255 * 1024
FIRST = 512 * 1024
SMALLEST, LARGEST = 64 * 1024, 8 * 2**20
SLOWEST = 20_000
SERVER_BYTES_PER_SECOND = 20_000_000
SECONDS_AT_ONCE = 1.0
OUTPUT_LIMIT = 1_000_000
OUTPUT_ARTIFACT = "cout.txt"


class Pace:
    """The size of the next piece, found from how long the last ones took.

    Args:
        after: Called after each piece.
    """

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.size = FIRST
        self.after = after

    @contextmanager
    def sending(self, database: Database[dict[str, Any]], size: int) -> Iterator[None]:
        """Give one piece, sent or read by the server, the time that it needs on a slow line.

        The time that the database's connection string allows is the least.
        """
        import pymongo

        options = database.client.options
        allowed = getattr(options, "timeout", None) or options.pool_options.socket_timeout
        begun = time.monotonic()
        try:
            with pymongo.timeout(max(allowed, size / SLOWEST) if allowed else None):
                yield
        except Exception:
            self.size = max(SMALLEST, self.size // 4)
            raise
        seconds = max(time.monotonic() - begun, 1e-3)
        if size >= SMALLEST:
            self.size = int(min(max(size / seconds * SECONDS_AT_ONCE, SMALLEST), LARGEST))
        self.after()


class FilePush:
    """What is known about one run's artifacts and sources in one database.

    Args:
        spool: The run's folder; all of its output becomes an artifact where it is long.
        pace: How much is sent at once.
    """

    def __init__(self, spool: RunSpool, pace: Pace) -> None:
        self.spool = spool
        self._pace = pace
        self._uploaded: set[Any] = set()
        self._artifacts: set[Any] = set()
        self._outdated: set[Any] = set()
        # Where the content of each file lies; None is for the captured output.
        self._contents: dict[Any, Path | None] = {}

    def push(
        self, database: Database[dict[str, Any]], run_id: Any, document: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Upload a run's files; return the lists that name them, in the schema's own layout."""
        sources, artifacts, missing = [], [], []
        for entry in document["experiment"].get("sources", []):
            file_id = object_id("source", entry["sha256"])
            source = self.spool.file(entry["sha256"])
            if self._upload(database, file_id, source, {"filename": entry["path"]}):
                sources.append([entry["name"], file_id])
            else:
                missing.append(entry["name"])
        entries: list[tuple[Any, Path | None]] = []
        for entry in document["artifacts"]:
            entries.append((entry, self.spool.file(entry["sha256"])))
        if self.spool.output.size() > OUTPUT_LIMIT and document["status"] != "RUNNING":
            digest = _digest(self._blocks(None), hashlib.sha256())
            whole = {"name": OUTPUT_ARTIFACT, "sha256": digest, "content_type": "text/plain"}
            entries.append(({**whole, "size": self.spool.output.size()}, None))
        for entry, path in entries:
            file_id = object_id(self.spool.uuid, "artifact", entry["sha256"])
            fields = {
                "filename": f"artifact://runs/{run_id}/{entry['name']}",
                "metadata": {"run_uuid": self.spool.uuid, "sha256": entry["sha256"]},
                "contentType": entry.get("content_type"),
            }
            if self._upload(database, file_id, path, fields):
                artifacts.append({**entry, "file_id": file_id})
            else:
                missing.append(entry["name"])
        present = {entry["file_id"] for entry in artifacts}
        self._outdated = (self._outdated | self._artifacts) - present
        self._artifacts = present
        return {"sources": sources, "artifacts": artifacts, "missing": missing}

    def same(self, database: Database[dict[str, Any]], ids: Iterable[Any]) -> bool:
        """Compare what files hold; what is damaged is deleted, so that the next push writes it."""
        damaged = [file_id for file_id in ids if not self._same(database, file_id)]
        remove(database, damaged)
        return not damaged

    def remove_outdated(self, database: Database[dict[str, Any]]) -> None:
        """Delete artifacts that others have replaced, which no document names any longer."""
        remove(database, self._outdated)
        self._uploaded -= self._outdated
        self._outdated = set()

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self._uploaded.clear()

    def _upload(
        self, database: Database[dict[str, Any]], file_id: Any, path: Path | None, entry: Any
    ) -> bool:
        if file_id not in self._uploaded:
            if path is not None and not path.exists():
                return holds(database, file_id)
            self._contents[file_id] = path
            upload(database, file_id, self._blocks(path), entry, self._pace)
            self._uploaded.add(file_id)
        return True

    def _same(self, database: Database[dict[str, Any]], file_id: Any) -> bool:
        path = self._contents.get(file_id)
        if file_id not in self._contents or (path is not None and not path.exists()):
            # The spool has lost it, and the database has it from before.
            return holds(database, file_id)
        size = self.spool.output.size() if path is None else path.stat().st_size
        wanted = _digest(self._blocks(path), hashlib.md5(usedforsecurity=False))
        return content_digest(database, file_id, size) == wanted

    def _blocks(self, path: Path | None) -> Iterator[bytes]:
        if path is not None:
            return file_blocks(path)
        size = self.spool.output.size()
        return (self.spool.output.read(offset, CHUNK) for offset in range(0, size, CHUNK))


def file_blocks(path: Path) -> Iterator[bytes]:
    """Read a file in the blocks that the database keeps it in."""
    with open(path, "rb") as reader:
        while block := reader.read(CHUNK):
            yield block


def object_id(*parts: str) -> Any:
    """Derive the same id from what identifies a stored thing, on every attempt."""
    from bson import ObjectId

    return ObjectId(hashlib.sha256("\0".join(parts).encode("utf-8")).digest()[:12])


def upload(
    database: Database[dict[str, Any]],
    file_id: Any,
    blocks: Iterable[bytes],
    entry: Mapping[str, Any] | None = None,
    pace: Pace | None = None,
) -> None:
    """Store a file under an id that is derived from its content.

    GridFS's own upload would collide with the chunks of an attempt that was cut off, and would
    delete them under a second process that stores the same content at the same time.

    Args:
        database: The database.
        file_id: The id; whoever uses the same one stores the same bytes.
        blocks: The bytes, in blocks of ``CHUNK`` but for the last one.
        entry: Further fields of the file's entry, such as ``filename``.
        pace: How much is sent at once.
    """
    from bson import Binary
    from pymongo import UpdateOne

    if holds(database, file_id):
        return
    pace = pace or Pace()
    chunks = database["fs.chunks"]
    found = chunks.find({"files_id": {"$eq": file_id}}, {"n": 1, "_id": 0})
    there = {chunk["n"] for chunk in found}
    size = sent = 0
    waiting: list[Any] = []
    for number, block in enumerate(blocks):
        size += len(block)
        if number not in there:
            where = {"files_id": file_id, "n": number}
            waiting.append(UpdateOne(where, {"$set": {"data": Binary(block)}}, upsert=True))
            sent += len(block)
        if sent + CHUNK > pace.size and waiting:
            with pace.sending(database, sent):
                bulk_write(chunks, waiting)
            waiting, sent = [], 0
    if waiting:
        with pace.sending(database, sent):
            bulk_write(chunks, waiting)
    fields = {key: value for key, value in (entry or {}).items() if value is not None}
    fields = {"chunkSize": CHUNK, "uploadDate": utcnow(), **fields, "length": size}
    database["fs.files"].update_one({"_id": file_id}, {"$setOnInsert": fields}, upsert=True)


def holds(database: Database[dict[str, Any]], file_id: Any) -> bool:
    """Say whether a file's entry is there, which is written last."""
    return database["fs.files"].find_one({"_id": {"$eq": file_id}}, {"_id": 1}) is not None


def bulk_write(collection: Any, operations: list[Any]) -> Any:
    """Write in any order; return the result, or None where others have just created the same."""
    from pymongo.errors import BulkWriteError

    try:
        return collection.bulk_write(operations, ordered=False)
    except BulkWriteError as error:
        # 11000: another process, or an attempt whose answer was lost.
        if any(entry.get("code") != 11000 for entry in error.details["writeErrors"]):
            raise
        return None


def download(database: Database[dict[str, Any]], file_id: Any) -> Iterator[bytes]:
    """Read a stored file in blocks; ``gridfs.errors.NoFile`` is raised where there is none."""
    import gridfs

    with gridfs.GridFS(database).get(file_id) as stored:
        while block := stored.readchunk():
            yield block


def content_digest(database: Database[dict[str, Any]], file_id: Any, size: int) -> str:
    """Read what a stored file holds; on the server where it can do so by itself.

    Args:
        database: The database.
        file_id: The file's id.
        size: How many bytes there ought to be.

    Returns:
        The MD5 of its content; nothing where there is no such file, or a part of it is missing.
    """
    from gridfs.errors import CorruptGridFile, NoFile
    from pymongo.errors import OperationFailure

    entry = database["fs.files"].find_one({"_id": {"$eq": file_id}}, {"length": 1})
    if entry is None or entry.get("length") != size:
        return ""
    if size:
        try:
            slowest = size * SLOWEST // SERVER_BYTES_PER_SECOND
            with Pace().sending(database, slowest):
                return str(database.command("filemd5", file_id, root="fs")["md5"])
        except OperationFailure as error:
            if error.timeout:
                raise
            # This server does not know the command, or misses a part of the file.
    try:
        return _digest(download(database, file_id), hashlib.md5(usedforsecurity=False))
    except (NoFile, CorruptGridFile):
        return ""


def _digest(blocks: Iterable[bytes], digest: Any) -> str:
    for block in blocks:
        digest.update(block)
    return str(digest.hexdigest())


def remove(database: Database[dict[str, Any]], ids: Iterable[Any]) -> None:
    """Delete files."""
    gone = list(ids)
    if gone:
        # The entry first: chunks without one are what a cut-off upload leaves, and are used again.
        database["fs.files"].delete_many({"_id": {"$in": gone}})
        database["fs.chunks"].delete_many({"files_id": {"$in": gone}})
