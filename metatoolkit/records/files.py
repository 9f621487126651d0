"""Files in MongoDB, in GridFS's layout, written so that a cut-off upload is simply continued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.records.spool import utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

CHUNK = 255 * 1024
CHUNKS_AT_ONCE = 32


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
    database: Database[dict[str, Any]], file_id: Any, blocks: Iterable[bytes], **entry: Any
) -> None:
    """Store a file under an id that is derived from its content.

    GridFS's own upload would collide with the chunks of an attempt that was cut off, and would
    delete them under a second process that stores the same content at the same time.

    Args:
        database: The database.
        file_id: The id; whoever uses the same one stores the same bytes.
        blocks: The bytes, in blocks of ``CHUNK`` but for the last one.
        entry: Further fields of the file's entry, such as ``filename``.
    """
    from bson import Binary
    from pymongo import UpdateOne

    if database["fs.files"].find_one({"_id": file_id}, {"_id": 1}) is not None:
        return
    chunks = database["fs.chunks"]
    there = {chunk["n"] for chunk in chunks.find({"files_id": file_id}, {"n": 1, "_id": 0})}
    size = 0
    waiting: list[Any] = []
    for number, block in enumerate(blocks):
        size += len(block)
        if number not in there:
            where = {"files_id": file_id, "n": number}
            waiting.append(UpdateOne(where, {"$set": {"data": Binary(block)}}, upsert=True))
        if len(waiting) >= CHUNKS_AT_ONCE:
            _write(chunks, waiting)
            waiting = []
    if waiting:
        _write(chunks, waiting)
    fields = {key: value for key, value in entry.items() if value is not None}
    fields = {"chunkSize": CHUNK, "uploadDate": utcnow(), **fields, "length": size}
    database["fs.files"].update_one({"_id": file_id}, {"$setOnInsert": fields}, upsert=True)


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


def complete(database: Database[dict[str, Any]], ids: Iterable[Any]) -> bool:
    """Say whether files are stored with all their bytes.

    Args:
        database: The database.
        ids: The files' ids.

    Returns:
        Whether every one is.
    """
    wanted = set(ids)
    files = database["fs.files"].find({"_id": {"$in": [*wanted]}}, {"length": 1, "chunkSize": 1})
    needed = {file["_id"]: -(-file["length"] // file["chunkSize"]) for file in files}
    stages: list[dict[str, Any]] = [
        {"$match": {"files_id": {"$in": [*wanted]}}},
        {"$group": {"_id": "$files_id", "count": {"$sum": 1}}},
    ]
    found = {entry["_id"]: entry["count"] for entry in database["fs.chunks"].aggregate(stages)}
    return wanted == set(needed) and all(found.get(one, 0) == needed[one] for one in wanted)
