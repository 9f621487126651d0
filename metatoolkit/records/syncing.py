"""Runs brought over: into the database what is left in the spool, or all to another database."""

from __future__ import annotations

import datetime
import functools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import DatabaseUnavailableError, RecordsError
from metatoolkit.records.address import Address, database_errors, open_client, open_database
from metatoolkit.records.clean import utc
from metatoolkit.records.fields import duration
from metatoolkit.records.files import content_digest, download, holds, upload
from metatoolkit.records.home import private_directory, process_lives, storage_error
from metatoolkit.records.push import Push, ensure_indexes, number_run
from metatoolkit.records.run import section, status_of
from metatoolkit.records.server import find_server
from metatoolkit.records.spool import DOCUMENT, METRICS, RunSpool, spooled_runs, sweep
from metatoolkit.records.terminal import redact, say

if TYPE_CHECKING:
    from pymongo.database import Database

ATTEMPTS = 3
SILENT_SECONDS = 120.0
BAD = "bad"
OWN = ("runs", "metrics", "counters", "fs.files", "fs.chunks")


@dataclass
class Report:
    """What a sync has done.

    Args:
        pushed: Ids of the runs that are complete in the database now.
        live: Folders of runs that still go on.
        failed: Folders that could not be pushed, with the reason.
    """

    pushed: list[int] = field(default_factory=list)
    live: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def sync(home: Path | None = None, uri: str | None = None, aside: bool = True) -> Report:
    """Push every spooled run whose process has ended, verify it, and delete its folder then.

    Args:
        home: The data directory.
        uri: The server; by default the one that runs are recorded to.
        aside: Whether a run that cannot be pushed three times is moved out of the way.

    Returns:
        What was done.

    Raises:
        DatabaseUnavailableError: No server can be reached, or it goes away meanwhile.
    """
    report = Report()
    if not any(True for _ in spooled_runs(home)):
        return report
    address = find_server(home, uri)
    with open_client(address) as client:
        sweep(home)
        for spool in spooled_runs(home):
            if not _ended(spool):
                report.live.append(spool.path)
                continue
            try:
                run_id = _sync_run(spool, open_database(client), address)
            except DatabaseUnavailableError:
                raise
            except Exception as error:
                # One run that cannot be pushed must not keep the others from it.
                place = _set_aside(spool, error) if aside else spool.path
                report.failed[place] = f"{type(error).__name__}: {error}"
            else:
                report.pushed += [run_id] if run_id is not None else []
            finally:
                spool.unlock()
    return report


def sync_beside(home: Path | None, uri: str | None = None, seconds: float | None = None) -> None:
    """Push what is spooled beside a run, or a query that waits so long; neither fails by it."""

    def bring() -> None:
        try:
            # A query asks when what a run of this process has begun to push is there.
            with _one_at_a_time():
                sweep(home)
                report = sync(home, uri, aside=False)
            failed = [str(reason) for reason in report.failed.values()]
        except Exception as error:
            failed = [f"{type(error).__name__}: {error}"]
        if failed:
            say(f"earlier runs stay in the spool ({redact(failed[0])}): `metatoolkit records sync`")

    thread = threading.Thread(target=bring, name="sync", daemon=True)
    thread.start()
    if seconds is None:
        return
    thread.join(seconds)
    if thread.is_alive():
        say("runs are still on their way from the spool: answers may lack some of their values")


@functools.cache
def _one_at_a_time() -> threading.Lock:
    return threading.Lock()


# The thread that holds it is not in a child.
os.register_at_fork(after_in_child=_one_at_a_time.cache_clear)


def _ended(spool: RunSpool) -> bool:
    """Find out whether a spooled run's process has ended, and lock the folder if so."""
    if not spool.lock():
        return False
    try:
        identity = spool.read_document().get("proc", {})
        age = time.time() - spool.path.joinpath(DOCUMENT).stat().st_mtime
    except (RecordsError, OSError):
        # A damaged document belongs to no living run: its push will say what is wrong with it.
        return True
    # Some network file systems do not carry locks to other hosts: there, silence tells.
    if process_lives(identity) is None and abs(age) < SILENT_SECONDS:
        spool.unlock()
        return False
    return True


def _sync_run(spool: RunSpool, database: Database[dict[str, Any]], address: Address) -> int | None:
    if not (spool.path / DOCUMENT).exists():
        return None
    document = _closed_document(spool)
    try:
        with database_errors(address):
            push = Push(spool)
            former = database["runs"].find_one({"run_uuid": spool.uuid})
            run_id = push(database, document, final=True, former=former)
            if not push.verify(database, document):
                raise RecordsError("the database does not hold what was written to it")
    finally:
        spool.close()
    spool.remove()
    return run_id


def _closed_document(spool: RunSpool) -> dict[str, Any]:
    """Read the document of a run whose process has ended, with a status that says so."""
    document = spool.read_document()
    if document["status"] == "RUNNING":
        process = document.get("proc", {})
        document["status"] = "INTERRUPTED"
        last = [document.get("heartbeat"), document["start_time"]]
        if (spool.path / METRICS).exists():
            seconds = (spool.path / METRICS).stat().st_mtime
            last.append(utc(datetime.datetime.fromtimestamp(seconds, datetime.UTC)))
        document["stop_time"] = max(moment for moment in last if moment is not None)
        document["duration"] = duration(document)
        document["status_note"] = (
            f"process {process.get('pid')} on {process.get('host')} ended without a word "
            "(killed, or the machine went down); its last sign of life is the stop time"
        )
    return document


def _set_aside(spool: RunSpool, error: Exception) -> Path:
    """Count a failure; after the third one move the folder out of the way, never delete it."""
    tally = spool.path / "attempts"
    try:
        count = len(tally.read_text("utf-8")) if tally.exists() else 0
        tally.write_text("x" * (count + 1), "utf-8")
        tally.chmod(0o600)
        if count + 1 < ATTEMPTS:
            return spool.path
        target = private_directory(spool.path.parent / BAD) / spool.path.name
        spool.path.rename(target)
    except OSError as problem:
        raise storage_error(spool.path, problem) from error
    say(f"{spool.path.name} could not be pushed {ATTEMPTS} times ({error}); it is in {target}")
    return target


@dataclass
class DatabaseReport:
    """What a sync to another database has done.

    Args:
        runs: The runs' new ids by their former ones.
        files: How many files the target holds now that it did not hold before.
        values: How many metric values these runs have.
        live: Runs that still go on and were left out.
    """

    runs: dict[Any, Any] = field(default_factory=dict)
    files: int = 0
    values: int = 0
    live: list[Any] = field(default_factory=list)


def sync_databases(
    source: Database[dict[str, Any]],
    target: Database[dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> DatabaseReport:
    """Bring every run with its metrics, artifacts and sources over, and read everything back.

    What the target holds already is left alone and compared; a sync that was cut off is continued.
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
    report = DatabaseReport()
    ids = [entry["_id"] for entry in source["runs"].find({}, {"_id": 1}).sort("_id", 1)]
    # Runs that need another number get one above all of these, which keep theirs.
    top = max((one for one in ids if isinstance(one, int)), default=0)
    target["counters"].update_one({"_id": "runs"}, {"$max": {"last": top}}, upsert=True)
    for position, run_id in enumerate(ids):
        document = source["runs"].find_one({"_id": run_id})
        if document is None:
            continue
        if status_of(document) == "RUNNING":
            report.live.append(run_id)
            continue
        report.runs[run_id] = _sync_stored(source, target, document, report)
        if progress is not None:
            progress(position + 1, len(ids))
    for name in source.list_collection_names():
        # What viewers such as Omniboard keep beside the runs.
        if name not in OWN and not name.startswith("system."):
            for entry in source[name].find():
                target[name].replace_one({"_id": entry["_id"]}, entry, upsert=True)
    return report


def _sync_stored(
    source: Database[dict[str, Any]],
    target: Database[dict[str, Any]],
    document: dict[str, Any],
    report: DatabaseReport,
) -> Any:
    from pymongo.errors import DuplicateKeyError

    run_id = document["_id"]
    names = ("run_uuid",) if "run_uuid" in document else ("start_time", "experiment")
    identity = {name: document[name] for name in names if name in document} or {"_id": run_id}
    new_id, _ = number_run(target, identity, {}, run_id)
    for metric in source["metrics"].find({"run_id": run_id}):
        made = {**metric, "run_id": new_id}
        # A document of another run that has this id is not replaced, but an error.
        own = {"_id": metric["_id"], "run_id": new_id}
        try:
            target["metrics"].replace_one(own, made, upsert=True)
        except DuplicateKeyError:
            told = f"run {run_id}: a metric of it is another run's in the target"
            raise RecordsError(told) from None
        _compare(
            target["metrics"].find_one({"_id": metric["_id"]}), made, f"run {run_id}: a metric"
        )
        values = metric.get("values")
        report.values += len(values) if isinstance(values, list) else 0
    for file_id in _files(document):
        report.files += _sync_file(source, target, file_id, f"run {run_id}: the file {file_id}")
    made = {**document, "_id": new_id}
    target["runs"].replace_one({"_id": new_id}, made, upsert=True)
    _compare(target["runs"].find_one({"_id": new_id}), made, f"run {run_id}: the document")
    return new_id


def _files(document: dict[str, Any]) -> Iterable[Any]:
    artifacts = document.get("artifacts")
    for entry in artifacts if isinstance(artifacts, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("file_id"), Hashable):
            yield entry["file_id"]
    sources = section(document, "experiment").get("sources")
    for entry in sources if isinstance(sources, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], Hashable):
            yield entry[1]


def _sync_file(
    source: Database[dict[str, Any]], target: Database[dict[str, Any]], file_id: Any, what: str
) -> int:
    entry = source["fs.files"].find_one({"_id": {"$eq": file_id}})
    if entry is None:
        # Lost before: a sync cannot bring it back, and need not fail for it.
        return 0
    there = holds(target, file_id)
    if not there:
        kept = {key: value for key, value in entry.items() if key not in ("_id", "length")}
        upload(target, file_id, download(source, file_id), kept)
    found = [content_digest(one, file_id, entry.get("length", 0)) for one in (source, target)]
    if found[0] != found[1] or not found[0]:
        raise RecordsError(f"{what} differs in the target")
    return 0 if there else 1


def _compare(found: Any, wanted: dict[str, Any], what: str) -> None:
    from bson import encode

    # Compared as bytes: NaN, for one, equals itself there.
    if found is None or encode(found) != encode(wanted):
        raise RecordsError(f"{what} differs in the target")
