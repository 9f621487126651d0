"""Replay: what lies in the spool, brought into the database, once and in order."""

from __future__ import annotations

import datetime
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import DatabaseUnavailableError, RecordsError
from metatoolkit.records.address import (
    Address,
    database_errors,
    open_client,
    open_database,
    resolve,
)
from metatoolkit.records.fields import duration
from metatoolkit.records.home import private_directory, storage_error
from metatoolkit.records.processes import process_lives
from metatoolkit.records.push import Push
from metatoolkit.records.redaction import redact
from metatoolkit.records.spool import DOCUMENT, RunSpool, spooled_runs, sweep
from metatoolkit.records.terminal import say

if TYPE_CHECKING:
    from pymongo.database import Database

ATTEMPTS = 3
SILENT_SECONDS = 120.0
BAD = "bad"


@dataclass
class Report:
    """What a replay has done.

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
        DatabaseUnavailableError: No server can be reached.
    """
    report = Report()
    spools = list(spooled_runs(home))
    if not spools:
        return report
    address = resolve(home, uri)
    with open_client(address) as client:
        return sync_into(open_database(client), address, home, aside)


def sync_into(
    database: Database[dict[str, Any]],
    address: Address,
    home: Path | None = None,
    aside: bool = True,
) -> Report:
    """Push every spooled run whose process has ended into an open database.

    Args:
        database: The database.
        address: Its address, for messages.
        home: The data directory.
        aside: Whether a run that cannot be pushed three times is moved out of the way.

    Returns:
        What was done.

    Raises:
        DatabaseUnavailableError: The server goes away meanwhile.
    """
    report = Report()
    sweep(home)
    for spool in spooled_runs(home):
        if not ended(spool):
            report.live.append(spool.path)
            continue
        try:
            run_id = _replay(spool, database, address)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            # One run that cannot be replayed must not keep the others from it.
            place = _set_aside(spool, error) if aside else spool.path
            report.failed[place] = f"{type(error).__name__}: {error}"
        else:
            if run_id is not None:
                report.pushed.append(run_id)
        finally:
            spool.unlock()
    return report


def sync_beside(home: Path | None, uri: str, seconds: float) -> None:
    """Push what is spooled beside a query, which neither waits for it nor fails by it.

    Args:
        home: The data directory.
        uri: The server.
        seconds: How long to give it before the query goes on.
    """

    def replay() -> None:
        try:
            sweep(home)
            report = sync(home, uri, aside=False)
            failed = [str(reason) for reason in report.failed.values()]
        except Exception as error:
            failed = [f"{type(error).__name__}: {error}"]
        if failed:
            say(f"earlier runs stay in the spool ({redact(failed[0])}): `metatoolkit records sync`")

    thread = threading.Thread(target=replay, name="replay", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        say("runs are still on their way from the spool: answers may lack some of their values")


def ended(spool: RunSpool) -> bool:
    """Find out whether a spooled run's process has ended, and lock the folder if so.

    Args:
        spool: The run's folder.

    Returns:
        Whether the folder is ours to replay; the caller unlocks it.
    """
    if not spool.lock():
        return False
    try:
        identity = spool.read_document().get("proc", {})
        age = time.time() - spool.path.joinpath(DOCUMENT).stat().st_mtime
    except (RecordsError, OSError):
        # A damaged document belongs to no living run: replay will say what is wrong with it.
        return True
    # Some network file systems do not carry locks to other hosts: there, silence tells.
    if process_lives(identity) is None and abs(age) < SILENT_SECONDS:
        spool.unlock()
        return False
    return True


def closed_document(spool: RunSpool) -> dict[str, Any]:
    """Read the document of a run whose process has ended, with a status that says so.

    Args:
        spool: The run's folder.

    Returns:
        The document; RUNNING has become INTERRUPTED.
    """
    document = spool.read_document()
    if document["status"] == "RUNNING":
        process = document.get("proc", {})
        document["status"] = "INTERRUPTED"
        last = [document.get("heartbeat"), document["start_time"], _last_value(spool)]
        document["stop_time"] = max(moment for moment in last if moment is not None)
        document["duration"] = duration(document)
        document["status_note"] = (
            f"process {process.get('pid')} on {process.get('host')} ended without a word "
            "(killed, or the machine went down); its last sign of life is the stop time"
        )
    return document


def _replay(spool: RunSpool, database: Database[dict[str, Any]], address: Address) -> int | None:
    if not (spool.path / DOCUMENT).exists():
        return None
    document = closed_document(spool)
    metrics, output = spool.open_metrics(), spool.open_output()
    try:
        with database_errors(address):
            push = Push(spool, metrics, output)
            former = database["runs"].find_one({"run_uuid": spool.uuid})
            run_id = push(database, document, final=True, former=former)
            if not push.verify(database, document):
                raise RecordsError("the database does not hold what was written to it")
    finally:
        metrics.close()
        output.close()
    spool.remove()
    return run_id


def _last_value(spool: RunSpool) -> datetime.datetime | None:
    try:
        seconds = (spool.path / "metrics.jsonl").stat().st_mtime
    except FileNotFoundError:
        return None
    last = datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)
    return last.replace(microsecond=last.microsecond // 1000 * 1000)


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
    say(f"{spool.path.name} could not be replayed {ATTEMPTS} times ({error}); it is in {target}")
    return target
