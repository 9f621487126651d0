"""Files in MongoDB, in GridFS's layout, written so that a cut-off upload is simply continued."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.records.spool import utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

CHUNK = 255 * 1024
CHUNKS_AT_ONCE = 32


def upload(
    database: Database[dict[str, Any]], file_id: Any, content: Path | bytes, **entry: Any
) -> None:
    """Store a file under an id that is derived from its content.

    GridFS's own upload would collide with the chunks of an attempt that was cut off, and would
    delete them under a second process that stores the same content at the same time.

    Args:
        database: The database.
        file_id: The id; whoever uses the same one stores the same bytes.
        content: The bytes, or a path to them.
        entry: Further fields of the file's entry, such as ``filename``.
    """
    from bson import Binary
    from pymongo import UpdateOne
    from pymongo.errors import BulkWriteError

    if database["fs.files"].find_one({"_id": file_id}, {"_id": 1}) is not None:
        return
    chunks = database["fs.chunks"]
    there = {chunk["n"] for chunk in chunks.find({"files_id": file_id}, {"n": 1, "_id": 0})}
    size = 0
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as reader:
        number = 0
        waiting = []
        while True:
            block = reader.read(CHUNK)
            size += len(block)
            if block and number not in there:
                where = {"files_id": file_id, "n": number}
                waiting.append(UpdateOne(where, {"$set": {"data": Binary(block)}}, upsert=True))
            number += 1
            if waiting and (not block or len(waiting) >= CHUNKS_AT_ONCE):
                try:
                    chunks.bulk_write(waiting, ordered=False)
                except BulkWriteError as error:
                    # 11000: another process has just stored the same chunk.
                    if any(entry.get("code") != 11000 for entry in error.details["writeErrors"]):
                        raise
                waiting = []
            if not block:
                break
    fields = {key: value for key, value in entry.items() if value is not None}
    fields.update(length=size, chunkSize=CHUNK, uploadDate=utcnow())
    database["fs.files"].update_one({"_id": file_id}, {"$setOnInsert": fields}, upsert=True)


def download(database: Database[dict[str, Any]], file_id: Any) -> bytes:
    """Read a stored file.

    Args:
        database: The database.
        file_id: The file's id.

    Returns:
        Its bytes.

    Raises:
        gridfs.errors.NoFile: There is no such file.
    """
    import gridfs

    return gridfs.GridFS(database).get(file_id).read()
