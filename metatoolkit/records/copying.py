"""All runs of one database into another: how one moves to a MongoDB of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.files import complete, download, holds, upload
from metatoolkit.records.identities import ATTEMPTS, ensure_indexes, next_id
from metatoolkit.records.run import status_of

if TYPE_CHECKING:
    from pymongo.database import Database

OWN = ("runs", "metrics", "counters", "fs.files", "fs.chunks")


@dataclass
class Copied:
    """What a copy has done.

    Args:
        runs: The runs' new ids by their former ones.
        files: How many files the target holds now that it did not hold before.
        values: How many metric values the copied runs have.
        live: Runs that still go on and were left out.
    """

    runs: dict[Any, Any] = field(default_factory=dict)
    files: int = 0
    values: int = 0
    live: list[Any] = field(default_factory=list)


def copy_all(
    source: Database[dict[str, Any]],
    target: Database[dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy every run with its metrics, artifacts and sources, and read everything back.

    What the target holds already is left alone and compared; a copy that was cut off is continued.
    A run keeps its number unless the target has another run of that number.

    Args:
        source: Where the runs are.
        target: Where they go.
        progress: Called with the number of runs done and of all runs.

    Returns:
        What was done.

    Raises:
        RecordsError: The target holds something else than what was written to it.
    """
    from pymongo import WriteConcern

    target = target.with_options(write_concern=WriteConcern(w="majority", j=True))
    ensure_indexes(target)
    copied = Copied()
    ids = [entry["_id"] for entry in source["runs"].find({}, {"_id": 1}).sort("_id", 1)]
    # Runs that need another number get one above all of these, which keep theirs.
    top = max((one for one in ids if isinstance(one, int)), default=0)
    target["counters"].update_one({"_id": "runs"}, {"$max": {"last": top}}, upsert=True)
    for position, run_id in enumerate(ids):
        document = source["runs"].find_one({"_id": run_id})
        if document is None:
            continue
        if status_of(document) == "RUNNING":
            copied.live.append(run_id)
            continue
        copied.runs[run_id] = _copy_run(source, target, document, copied)
        if progress is not None:
            progress(position + 1, len(ids))
    for name in source.list_collection_names():
        # What viewers such as Omniboard keep beside the runs.
        if name not in OWN and not name.startswith("system."):
            for entry in source[name].find():
                target[name].replace_one({"_id": entry["_id"]}, entry, upsert=True)
    return copied


def _copy_run(
    source: Database[dict[str, Any]],
    target: Database[dict[str, Any]],
    document: dict[str, Any],
    copied: Copied,
) -> Any:
    from pymongo.errors import DuplicateKeyError

    new_id = _place(target, document)
    for metric in source["metrics"].find({"run_id": document["_id"]}):
        made = {**metric, "run_id": new_id}
        # A document of another run that has this id is not replaced, but an error.
        own = {"_id": metric["_id"], "run_id": new_id}
        try:
            target["metrics"].replace_one(own, made, upsert=True)
        except DuplicateKeyError:
            raise RecordsError(
                f"run {document['_id']}: a metric of it is another run's in the target"
            ) from None
        _compare(target["metrics"].find_one({"_id": metric["_id"]}), made, "a metric", document)
        values = metric.get("values")
        copied.values += len(values) if isinstance(values, list) else 0
    for file_id in _files(document):
        copied.files += _copy_file(source, target, file_id, document)
    made = {**document, "_id": new_id}
    target["runs"].replace_one({"_id": new_id}, made, upsert=True)
    _compare(target["runs"].find_one({"_id": new_id}), made, "the document", document)
    return new_id


def _place(target: Database[dict[str, Any]], document: dict[str, Any]) -> Any:
    """Find the run's number in the target, and keep it from others."""
    from pymongo.errors import DuplicateKeyError

    runs = target["runs"]
    names = ("run_uuid", "start_time", "experiment")
    identity = {name: document[name] for name in names if name in document}
    if "run_uuid" in identity:
        identity = {"run_uuid": identity["run_uuid"]}
    # Compared, and never read as a condition, whatever stands there.
    same = {name: {"$eq": value} for name, value in identity.items()}
    found = runs.find_one(same or {"_id": {"$eq": document["_id"]}}, {"_id": 1})
    if found is not None:
        return found["_id"]
    number = document["_id"]
    for _ in range(ATTEMPTS):
        try:
            runs.insert_one({**identity, "_id": number})
        except DuplicateKeyError:
            number = next_id(target)
            continue
        return number
    raise RecordsError(f"run {document['_id']}: the target takes it under no number")


def _files(document: dict[str, Any]) -> Iterable[Any]:
    artifacts = document.get("artifacts")
    for entry in artifacts if isinstance(artifacts, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("file_id"), Hashable):
            yield entry["file_id"]
    experiment = document.get("experiment")
    sources = experiment.get("sources") if isinstance(experiment, dict) else None
    for entry in sources if isinstance(sources, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], Hashable):
            yield entry[1]


def _copy_file(
    source: Database[dict[str, Any]],
    target: Database[dict[str, Any]],
    file_id: Any,
    document: dict[str, Any],
) -> int:
    entry = source["fs.files"].find_one({"_id": {"$eq": file_id}})
    if entry is None:
        # Lost before: a copy cannot bring it back, and need not fail for it.
        return 0
    there = holds(target, file_id)
    if not there:
        kept = {key: value for key, value in entry.items() if key not in ("_id", "length")}
        upload(target, file_id, download(source, file_id), kept)
    digests = [_digest(database, file_id) for database in (source, target)]
    if digests[0] != digests[1] or not complete(target, [file_id]):
        raise RecordsError(f"run {document['_id']}: the file {file_id} differs in the target")
    return 0 if there else 1


def _digest(database: Database[dict[str, Any]], file_id: Any) -> bytes:
    digest = hashlib.sha256()
    for block in download(database, file_id):
        digest.update(block)
    return digest.digest()


def _compare(found: Any, wanted: dict[str, Any], what: str, document: dict[str, Any]) -> None:
    from bson import encode

    # Compared as bytes: NaN, for one, equals itself there.
    if found is None or encode(found) != encode(wanted):
        raise RecordsError(f"run {document['_id']}: {what} differs in the target")
