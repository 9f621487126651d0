"""What lies in the database: ids, indexes, and files whose cut-off upload is continued."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.spool import utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

CHUNK = 255 * 1024
FIRST = 512 * 1024
SMALLEST, LARGEST = 64 * 1024, 8 * 2**20
SLOWEST = 20_000
SERVER_BYTES_PER_SECOND = 20_000_000
SECONDS_AT_ONCE = 1.0
ATTEMPTS = 1_000
# Somebody may have given a run the largest of all: what comes after it is none.
LARGEST_NUMBER = 2**53


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
        """Give one piece the time that it needs on a slow line.

        Args:
            database: Where it goes. The time that its connection string allows is the least.
            size: How many bytes are sent, or read by the server.

        Yields:
            Nothing.
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


def file_blocks(path: Path) -> Iterator[bytes]:
    """Read a file in the blocks that the database keeps it in.

    Args:
        path: The file.

    Yields:
        Its bytes.
    """
    with open(path, "rb") as reader:
        while block := reader.read(CHUNK):
            yield block


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
                _write(chunks, waiting)
            waiting, sent = [], 0
    if waiting:
        with pace.sending(database, sent):
            _write(chunks, waiting)
    fields = {key: value for key, value in (entry or {}).items() if value is not None}
    fields = {"chunkSize": CHUNK, "uploadDate": utcnow(), **fields, "length": size}
    database["fs.files"].update_one({"_id": file_id}, {"$setOnInsert": fields}, upsert=True)


def holds(database: Database[dict[str, Any]], file_id: Any) -> bool:
    """Say whether a file is stored.

    Args:
        database: The database.
        file_id: The file's id.

    Returns:
        Whether its entry is there, which is written last.
    """
    return database["fs.files"].find_one({"_id": {"$eq": file_id}}, {"_id": 1}) is not None


def _write(chunks: Any, operations: list[Any]) -> None:
    from pymongo.errors import BulkWriteError

    try:
        chunks.bulk_write(operations, ordered=False)
    except BulkWriteError as error:
        # 11000: another process has just stored the same chunk.
        if any(entry.get("code") != 11000 for entry in error.details["writeErrors"]):
            raise


def download(database: Database[dict[str, Any]], file_id: Any) -> Iterator[bytes]:
    """Read a stored file.

    Args:
        database: The database.
        file_id: The file's id.

    Yields:
        Its bytes, in blocks.

    Raises:
        gridfs.errors.NoFile: There is no such file.
    """
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
    digest = hashlib.md5(usedforsecurity=False)
    try:
        for block in download(database, file_id):
            digest.update(block)
    except (NoFile, CorruptGridFile):
        return ""
    return digest.hexdigest()


def remove(database: Database[dict[str, Any]], ids: Iterable[Any]) -> None:
    """Delete files.

    Args:
        database: The database.
        ids: The files' ids.
    """
    gone = list(ids)
    if gone:
        # The entry first: chunks without one are what a cut-off upload leaves, and are used again.
        database["fs.files"].delete_many({"_id": {"$in": gone}})
        database["fs.chunks"].delete_many({"files_id": {"$in": gone}})


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

    Raises:
        RecordsError: All numbers that were tried are taken.
    """
    from pymongo import ReturnDocument
    from pymongo.errors import DuplicateKeyError

    runs, counters = database["runs"], database["counters"]
    for _ in range(ATTEMPTS):
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
        integers = {"$type": ["int", "long"], "$lt": LARGEST_NUMBER}
        largest = runs.find_one({"_id": integers}, {"_id": 1}, sort=[("_id", -1)])
        top = int(largest["_id"]) if largest is not None else 0
        counters.update_one({"_id": "runs"}, {"$max": {"last": top}})
    raise RecordsError("the database gives no number to a new run: those that follow are taken")


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
