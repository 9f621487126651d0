"""The thread that pushes a run into the database while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.address import (
    Address,
    NoServerError,
    database_errors,
    open_client,
    open_database,
)
from metatoolkit.records.push import Push
from metatoolkit.records.server import find_server
from metatoolkit.records.spool import spooled_runs
from metatoolkit.records.syncing import sync_beside
from metatoolkit.records.terminal import redact, say

if TYPE_CHECKING:
    from pymongo import MongoClient

BEAT_SECONDS = 5.0
START_WAIT_SECONDS = 5.0
END_WAIT_SECONDS = 10.0


class PushThread:
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
        # Why the last attempt failed.
        self.complaint: str | None = None
        self._verified = False
        self._document = document
        self._release = release
        self._home = home
        self._client: MongoClient[dict[str, Any]] | None = None
        self._address = Address("", managed=False)
        self._wake = threading.Event()
        self._first = threading.Event()
        self._done = threading.Event()
        self._final = False
        self._no_server = False
        self._synced = False
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
        """Push for the last time, for a bounded time; say whether everything was read back."""
        self._final = True
        self._wake.set()
        self._done.wait(END_WAIT_SECONDS)
        return self._verified

    def _run(self) -> None:
        try:
            while not self._final:
                self._attempt(final=False)
                self._first.set()
                self._wake.wait(BEAT_SECONDS)
                self._wake.clear()
            self._push_last()
        finally:
            self._close()
            if self._final:
                self._release()
            self._first.set()
            self._done.set()

    def _push_last(self) -> None:
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
            if self._client is None:
                self._address = find_server(self._home)
                self._client = open_client(self._address)
            with database_errors(self._address):
                # What is sent gets more time than a server that is looked for.
                self._client.admin.command("ping")
                database = open_database(self._client)
                self.push(database, document, final=final)
                self._verified = final and self.push.verify(database, document)
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
                say(f"the database is back at {self._address}; nothing was lost")
                self.complaint = None
            if final and not self._verified:
                self.push.forget()
            self._sync_others()
            return self._verified or not final
        return False

    def _sync_others(self) -> None:
        """Bring in what earlier runs have left, once, and without holding this one up."""
        if not self._synced:
            self._synced = True
            if any(spool.uuid != self.push.spool.uuid for spool in spooled_runs(self._home)):
                sync_beside(self._home)

    def _retry_later(self, reason: str) -> None:
        self.push.forget()
        self._close()
        self._complain(redact(reason))

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _complain(self, reason: str) -> None:
        if self.complaint is None:
            say(f"{reason.rstrip('.')}; the run goes on and is kept in {self.push.spool.path}")
        self.complaint = reason
