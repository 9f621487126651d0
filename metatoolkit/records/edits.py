"""What is done with recorded runs: tagged, noted, deleted, or copied to another database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.records.address import database_errors
from metatoolkit.records.clean import clean_text
from metatoolkit.records.files import (
    remove,
)
from metatoolkit.records.query import looked_up
from metatoolkit.records.run import Run
from metatoolkit.records.spool import RunSpool, spooled_runs
from metatoolkit.records.stores import MongoStore, SpoolStore

if TYPE_CHECKING:
    pass

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
