"""From the spool into the database: the thread that pushes a live run, and the replay of others."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import DatabaseUnavailableError, RecordsError
from metatoolkit.records.address import (
    Address,
    NoServerError,
    database_errors,
    open_client,
    open_database,
)
from metatoolkit.records.fields import duration
from metatoolkit.records.home import private_directory, process_lives, storage_error
from metatoolkit.records.push import Push
from metatoolkit.records.redaction import redact
from metatoolkit.records.server import find_server
from metatoolkit.records.spool import DOCUMENT, RunSpool, spooled_runs, sweep
from metatoolkit.records.terminal import say

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

BEAT_SECONDS = 5.0
START_WAIT_SECONDS = 5.0
END_WAIT_SECONDS = 10.0
ATTEMPTS = 3
SILENT_SECONDS = 120.0
BAD = "bad"


class Pusher:
    """Pushes a run at every beat and once more, verified, at its end.

    Args:
        push: The run's copy in the database.
        document: Writes the run's document to the spool and returns it.
        release: Closes the run's files; called once the thread no longer uses them.
        home: The data directory.
    """

    def __init__(
        self,
        push: Push,
        document: Callable[[], dict[str, Any]],
        release: Callable[[], None],
        home: Path | None,
    ) -> None:
        self.push = push
        self.verified = False
        self._document = document
        self._release = release
        self._home = home
        self._client: MongoClient[dict[str, Any]] | None = None
        self._address: Address | None = None
        self._wake = threading.Event()
        self._first = threading.Event()
        self._done = threading.Event()
        self._final = False
        self._no_server = False
        self._replayed = False
        # Why the last attempt failed.
        self.complaint: str | None = None
        # A daemon: a frozen server must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)

    def start(self) -> None:
        """Begin; wait a few seconds at most for the first push, which gives the run its id."""
        self._thread.start()
        self._first.wait(START_WAIT_SECONDS)

    def wake(self) -> None:
        """Push soon."""
        self._wake.set()

    def finish(self) -> bool:
        """Push for the last time and verify, for a bounded time.

        Returns:
            Whether everything is in the database and was read back.
        """
        self._final = True
        self._wake.set()
        self._done.wait(END_WAIT_SECONDS)
        return self.verified

    def _run(self) -> None:
        try:
            self._beats()
            self._last_words()
        finally:
            self._close()
            if self._final:
                self._release()
            self._first.set()
            self._done.set()

    def _beats(self) -> None:
        while not self._final:
            self._attempt(final=False)
            self._first.set()
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()

    def _last_words(self) -> None:
        deadline = time.monotonic() + END_WAIT_SECONDS
        was_failing = self.complaint is not None
        while not self._attempt(final=True):
            # A server that has been away for long gets one more chance, one that has just gone
            # away gets the time that it may take to come back.
            if self._no_server or was_failing or time.monotonic() > deadline:
                return
            time.sleep(0.2)

    def _attempt(self, final: bool) -> bool:
        try:
            document = self._document()
            client, address = self._connect()
            with database_errors(address):
                # What is sent gets more time than a server that is looked for.
                client.admin.command("ping")
                database = open_database(client)
                self.push(database, document, final=final)
                self.verified = final and self.push.verify(database, document)
        except NoServerError as error:
            self._no_server = True
            self._complain(str(error))
        except RecordsError as error:
            self._retry_later(str(error))
        except Exception as error:
            # Whatever this is, the run must go on, and the next attempt may well succeed.
            self._retry_later(f"{type(error).__name__}: {error}")
        else:
            if self.complaint is not None:
                say(f"the database is back at {address}; nothing was lost")
                self.complaint = None
            if final and not self.verified:
                self.push.forget()
            self._replay_others()
            return self.verified or not final
        return False

    def _replay_others(self) -> None:
        """Bring in what earlier runs have left, once, and without holding this one up."""
        if not self._replayed:
            self._replayed = True
            if any(spool.uuid != self.push.spool.uuid for spool in spooled_runs(self._home)):
                threading.Thread(target=self._replay, name="replay", daemon=True).start()

    def _replay(self) -> None:
        try:
            sync(self._home, aside=False)
        except RecordsError as error:
            say(f"earlier runs stay in the spool: {error}")

    def _retry_later(self, reason: str) -> None:
        self.push.forget()
        self._close()
        self._complain(redact(reason))

    def _connect(self) -> tuple[MongoClient[dict[str, Any]], Address]:
        if self._client is None or self._address is None:
            self._address = find_server(self._home)
            self._client = open_client(self._address)
        return self._client, self._address

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _complain(self, reason: str) -> None:
        if self.complaint is None:
            say(f"{reason.rstrip('.')}; the run goes on and is kept in {self.push.spool.path}")
        self.complaint = reason


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
                run_id = _replay(spool, open_database(client), address)
            except DatabaseUnavailableError:
                raise
            except Exception as error:
                # One run that cannot be replayed must not keep the others from it.
                place = _set_aside(spool, error) if aside else spool.path
                report.failed[place] = f"{type(error).__name__}: {error}"
            else:
                report.pushed += [run_id] if run_id is not None else []
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


def _ended(spool: RunSpool) -> bool:
    """Find out whether a spooled run's process has ended, and lock the folder if so."""
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


def _closed_document(spool: RunSpool) -> dict[str, Any]:
    """Read the document of a run whose process has ended, with a status that says so."""
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
    document = _closed_document(spool)
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
