"""What is done with recorded runs: tagged, noted, deleted, or brought in from folders."""

from __future__ import annotations

import datetime
import hashlib
import json
import mimetypes
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, MetatoolkitError, RecordsError, StorageError
from metatoolkit.records.address import database_errors
from metatoolkit.records.clean import clean, clean_metric, clean_text, utc
from metatoolkit.records.document import FORMAT
from metatoolkit.records.fields import duration
from metatoolkit.records.files import remove
from metatoolkit.records.query import connect, looked_up
from metatoolkit.records.run import Run
from metatoolkit.records.spool import DOCUMENT, METRICS, OUTPUT, RunSpool, spooled_runs, utcnow
from metatoolkit.records.stores import MongoStore, SpoolStore, plain_objects
from metatoolkit.records.terminal import say

LONGEST_TAG = 100
TIMES = ("start_time", "stop_time", "heartbeat")
SILENT = datetime.timedelta(minutes=2)


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
                        raise RecordsError(f"run {run.id} is being written or pushed right now")
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


@dataclass
class Imported:
    """What became of the runs of a folder.

    Attributes:
        added: Folders of runs that are recorded now.
        present: Folders of runs that were recorded already.
        live: Folders of runs that still go on.
        failed: Why other folders hold no run that could be read.
    """

    added: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    live: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def import_folder(folder: str | os.PathLike[str], home: Path | None = None) -> Imported:
    """Bring runs of a ``FileStorageObserver`` into the spool, each of them once.

    Configuration, result, metrics, output, artifacts and sources are taken over; nothing in the
    folder is changed, decoded into objects or executed.

    Args:
        folder: The observer's folder, or that of one run.
        home: The data directory; by default the user's own.

    Returns:
        What was done.

    Raises:
        ConfigurationError: There are no runs in the folder.
        StorageError: The spool cannot be written.
    """
    base = Path(folder)
    found = [base] if (base / DOCUMENT).is_file() else sorted(base.glob(f"*/{DOCUMENT}"))
    paths = [path if path.is_dir() else path.parent for path in found]
    if not paths:
        raise ConfigurationError(
            f"{base} holds no runs: give the folder of a FileStorageObserver, in which each run "
            f"has a folder with {DOCUMENT}"
        )
    done = Imported()
    with connect(home=home) as database:
        known = {run.uuid for run in database.find()}
    for path in paths:
        try:
            entry = _read(path / DOCUMENT)
            uuid = _identity(path, entry)
            if uuid in known:
                done.present.append(path)
            elif _lives(entry):
                done.live.append(path)
            else:
                _spool(path, entry, uuid, home)
                done.added.append(path)
        except StorageError:
            raise
        except (MetatoolkitError, OSError, ValueError, TypeError, AttributeError) as error:
            done.failed[path] = f"{type(error).__name__}: {error}"
    return done


def _read(path: Path) -> Any:
    return plain_objects(json.loads(path.read_text("utf-8")))


def _identity(path: Path, entry: Mapping[str, Any]) -> str:
    """Derive the run's own id from what stays the same when it is imported again."""
    parts = [path.name, entry["experiment"]["name"], entry.get("start_time"), entry.get("host")]
    parts.append(_read(path / "config.json") if (path / "config.json").exists() else {})
    written = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(written.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _moment(value: Any) -> datetime.datetime | None:
    if not isinstance(value, str):
        return None
    return utc(datetime.datetime.fromisoformat(value))


def _lives(entry: Mapping[str, Any]) -> bool:
    heard = _moment(entry.get("heartbeat")) or _moment(entry.get("start_time"))
    running = entry.get("status") in ("RUNNING", "QUEUED")
    return running and heard is not None and abs(utcnow() - heard) < SILENT


def _spool(path: Path, entry: Mapping[str, Any], uuid: str, home: Path | None) -> None:
    spool = RunSpool.create(home, uuid)
    try:
        times = {name: _moment(entry.get(name)) for name in TIMES}
        times["start_time"] = times["start_time"] or utcnow()
        document: dict[str, Any] = {
            "run_uuid": uuid,
            "format": FORMAT,
            "command": entry.get("command"),
            "experiment": {**entry["experiment"], "sources": _sources(path, entry, spool)},
            "host": entry.get("host") or {},
            "config": _optional(path / "config.json"),
            "status": entry.get("status") or "INTERRUPTED",
            "resources": entry.get("resources") or [],
            "artifacts": _artifacts(path, entry, spool),
            "info": _optional(path / "info.json"),
            "result": entry.get("result"),
            "fail_trace": entry.get("fail_trace"),
            "meta": {**(entry.get("meta") or {}), "imported_from": str(path.absolute())},
        }
        document = {key: value for key, value in document.items() if value is not None}
        document = {**clean(document), **{k: v for k, v in times.items() if v is not None}}
        document["result"] = document.get("result")
        document["duration"] = duration(document)
        _write_metrics(path, spool)
        output = path / "cout.txt"
        (spool.path / OUTPUT).write_bytes(output.read_bytes() if output.exists() else b"")
        # Last, so that a run that was cut off here is none.
        spool.write_document(document)
        # It is of no process that could still be alive.
        os.utime(spool.path / DOCUMENT, (0, 0))
    finally:
        spool.unlock()


def _optional(path: Path) -> Any:
    return _read(path) if path.exists() else {}


def _write_metrics(path: Path, spool: RunSpool) -> None:
    lines = []
    for name, series in _optional(path / "metrics.json").items():
        rows = zip(series["steps"], series["values"], series["timestamps"], strict=True)
        for step, value, when in rows:
            time = _moment(when) or utcnow()
            seconds = time.replace(tzinfo=datetime.UTC).timestamp()
            row = [clean_text(name), step, clean_metric(name, value), seconds]
            lines.append(json.dumps(row) + "\n")
    (spool.path / METRICS).write_text("".join(lines), "ascii")


def _artifacts(path: Path, entry: Mapping[str, Any], spool: RunSpool) -> list[dict[str, Any]]:
    kept = []
    for one in entry.get("artifacts") or []:
        name = str(one["name"] if isinstance(one, Mapping) else one)
        file = _inside(path, name)
        if file is not None:
            digest, size = spool.add_file(file)
            kind = mimetypes.guess_type(name)[0]
            kept.append({"name": name, "sha256": digest, "size": size, "content_type": kind})
    return kept


def _sources(path: Path, entry: Mapping[str, Any], spool: RunSpool) -> list[dict[str, Any]]:
    kept = []
    for name, stored in entry["experiment"].get("sources") or []:
        file = _inside(path.parent, str(stored))
        if file is not None:
            digest, _ = spool.add_file(file)
            kept.append({"name": str(name), "path": str(name), "sha256": digest})
    return kept


def _inside(base: Path, name: str) -> Path | None:
    """Find a file that a run names; one that lies elsewhere is none of it."""
    file = (base / name).resolve()
    if base.resolve() in file.parents and file.is_file():
        return file
    say(f"{base} holds no file {name!r}, which is left out")
    return None
