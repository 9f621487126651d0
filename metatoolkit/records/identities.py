"""Ids and indexes: which document of the database belongs to which run, metric or file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError

if TYPE_CHECKING:
    from pymongo.database import Database

ATTEMPTS = 1_000
# Somebody may have given a run the largest of all: what comes after it is none.
LARGEST = 2**53


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
        integers = {"$type": ["int", "long"], "$lt": LARGEST}
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
