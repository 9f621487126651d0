"""What is done with recorded runs: tagged, noted, deleted, or copied to another database."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.records.address import database_errors
from metatoolkit.records.clean import clean_text
from metatoolkit.records.files import (
    ATTEMPTS,
    content_digest,
    download,
    ensure_indexes,
    holds,
    next_id,
    remove,
    upload,
)
from metatoolkit.records.query import looked_up
from metatoolkit.records.run import Run, status_of
from metatoolkit.records.spool import RunSpool, spooled_runs
from metatoolkit.records.spool_store import SpoolStore
from metatoolkit.records.stores import MongoStore

if TYPE_CHECKING:
    from pymongo.database import Database

LONGEST_TAG = 100


def tag(run: Run | int | str, tags: str | Iterable[str], take_off: bool = False) -> list[str]:
    """Put tags on a run, where Omniboard shows them too, or take them off.

    Args:
        run: The run, or its id.
        tags: The tags, or one of them.
        take_off: Whether to take them off.

    Returns:
        The run's tags now.

    Raises:
        ConfigurationError: A tag is blank or longer than 100 characters.
        RecordsError: The run is not in a database.
        QueryError: There is no such run.
    """
    every = [tags] if isinstance(tags, str) else tags
    given = [clean_text(str(one)).strip() for one in every]
    for one in given:
        if not one or len(one) > LONGEST_TAG:
            raise ConfigurationError(f"a tag has 1 to {LONGEST_TAG} characters, not {one[:20]!r}")
    with looked_up([run]) as (found,):
        kept = [one for one in found.tags if one not in given]
        added = [*found.tags, *(one for one in given if one not in found.tags)]
        _set(found, "tags", kept if take_off else added)
        return found.tags


def note(run: Run | int | str, text: str) -> None:
    """Replace a run's notes, which Omniboard shows too.

    Args:
        run: The run, or its id.
        text: The notes; blank ones are removed.

    Raises:
        RecordsError: The run is not in a database.
        QueryError: There is no such run.
    """
    with looked_up([run]) as (found,):
        _set(found, "notes", clean_text(text).strip())


def delete(runs: Iterable[Run | int | str]) -> None:
    """Delete runs for good: their documents, metrics and artifacts, and what the spool has of them.

    Args:
        runs: The runs, or their ids.

    Raises:
        RecordsError: One of them still goes on, or is being written; none is deleted then.
        QueryError: There is no such run.
    """
    spools: list[RunSpool] = []
    with looked_up(runs) as found:
        live = [str(run.id) for run in found if run.status == "RUNNING"]
        if live:
            named = ", ".join(live)
            raise RecordsError(f"still running: {named}. End them before deleting them.")
        try:
            for run in found:
                for spool in _spools(run):
                    if not spool.lock():
                        raise RecordsError(f"run {run.id} is being written or replayed right now")
                    spools.append(spool)
            for run in found:
                if isinstance(run.store, MongoStore):
                    _delete_stored(run, run.store)
            for spool in spools:
                # It would be brought into the database again.
                spool.remove()
        finally:
            for spool in spools:
                spool.unlock()


def _spools(run: Run) -> list[RunSpool]:
    home = run.store.home if isinstance(run.store, MongoStore | SpoolStore) else None
    return [spool for spool in spooled_runs(home) if spool.uuid == run.uuid]


def _set(run: Run, name: str, value: Any) -> None:
    store = run.store
    if not isinstance(store, MongoStore):
        raise RecordsError(
            f"run {run.id} lies in the spool only. `metatoolkit records sync` brings it into the "
            "database, where runs have tags and notes."
        )
    with database_errors(store.address):
        # A run of stock Sacred may have no such part, and a planted one something else there.
        if not isinstance(run.document.get("omniboard"), dict):
            store.database["runs"].update_one({"_id": run.id}, {"$set": {"omniboard": {}}})
        store.database["runs"].update_one({"_id": run.id}, {"$set": {f"omniboard.{name}": value}})
    present = run.document.get("omniboard")
    changed = {**(present if isinstance(present, dict) else {}), name: value}
    run.document = {**run.document, "omniboard": changed}


def _delete_stored(run: Run, store: MongoStore) -> None:
    database = store.database
    with database_errors(store.address):
        own = _own_files(run, database)
        database["metrics"].delete_many({"run_id": {"$eq": run.id}})
        remove(database, own)
        # Last, so that a deletion that is cut off can be repeated.
        database["runs"].delete_one({"_id": {"$eq": run.id}})


def _own_files(run: Run, database: Any) -> list[Any]:
    """List the files that go with a run; what its document says is not believed."""
    from bson import ObjectId

    if isinstance(run.uuid, str):
        return list(database["fs.files"].distinct("_id", {"metadata.run_uuid": {"$eq": run.uuid}}))
    # Sacred's own observer does not note down whose a file is: it is a run's if no other names it.
    artifacts = run.document.get("artifacts")
    entries = artifacts if isinstance(artifacts, list) else []
    named = [one.get("file_id") for one in entries if isinstance(one, dict)]
    ids = [one for one in named if isinstance(one, ObjectId)]
    sources = {"experiment.sources": {"$elemMatch": {"$elemMatch": {"$in": ids}}}}
    others = {"_id": {"$ne": run.id}, "$or": [{"artifacts.file_id": {"$in": ids}}, sources]}
    shared: set[Any] = set()
    for other in database["runs"].find(others, {"artifacts": 1, "experiment.sources": 1}):
        shared |= {one for one in ids if str(one) in str(other)}
    return [one for one in ids if one not in shared]


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
    found = [content_digest(one, file_id, entry.get("length", 0)) for one in (source, target)]
    if found[0] != found[1] or not found[0]:
        raise RecordsError(f"run {document['_id']}: the file {file_id} differs in the target")
    return 0 if there else 1


def _compare(found: Any, wanted: dict[str, Any], what: str, document: dict[str, Any]) -> None:
    from bson import encode

    # Compared as bytes: NaN, for one, equals itself there.
    if found is None or encode(found) != encode(wanted):
        raise RecordsError(f"run {document['_id']}: {what} differs in the target")
