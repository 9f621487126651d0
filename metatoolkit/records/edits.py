"""What may be changed about recorded runs: tags, notes, and whether they are kept at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.records.address import database_errors
from metatoolkit.records.clean import clean_text
from metatoolkit.records.files import remove
from metatoolkit.records.query import looked_up
from metatoolkit.records.run import Run
from metatoolkit.records.spool import VERIFIED
from metatoolkit.records.spool_store import SpoolStore
from metatoolkit.records.stores import MongoStore

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
    """Delete runs for good: their documents, metrics and artifacts.

    Args:
        runs: The runs, or their ids.

    Raises:
        RecordsError: One of them still goes on; none is deleted then.
        QueryError: There is no such run.
    """
    with looked_up(runs) as found:
        live = [str(run.id) for run in found if run.status == "RUNNING"]
        if live:
            named = ", ".join(live)
            raise RecordsError(f"still running: {named}. End them before deleting them.")
        for run in found:
            if isinstance(run.store, MongoStore):
                _delete_stored(run, run.store)
            elif isinstance(run.store, SpoolStore):
                _delete_spooled(run, run.store)


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
    artifacts = run.document.get("artifacts")
    entries = artifacts if isinstance(artifacts, list) else []
    ids = [one["file_id"] for one in entries if isinstance(one, dict) and "file_id" in one]
    with database_errors(store.address):
        others = {"_id": {"$ne": run.id}, "artifacts.file_id": {"$in": ids}}
        shared = {
            entry.get("file_id")
            for other in database["runs"].find(others, {"artifacts": 1})
            for entry in other["artifacts"]
        }
        own = [one for one in ids if one not in shared]
        if run.uuid:
            own += database["fs.files"].distinct("_id", {"metadata.run_uuid": run.uuid})
        database["metrics"].delete_many({"run_id": run.id})
        remove(database, own)
        # Last, so that a deletion that is cut off can be repeated.
        database["runs"].delete_one({"_id": run.id})


def _delete_spooled(run: Run, store: SpoolStore) -> None:
    spool = store.spool(run.document)
    if not spool.lock():
        raise RecordsError(f"run {run.id} is being written or replayed at this moment")
    try:
        gone = spool.path.with_name(f"{VERIFIED}{spool.path.name}")
        spool.path.rename(gone)
        shutil.rmtree(gone)
    finally:
        spool.unlock()
