"""Faults on purpose: what breaks, and what is found afterwards of what a run has recorded."""

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pymongo

from metatoolkit.records import push_thread
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import spooled_runs
from metatoolkit.records.syncing import sync

from .conftest import kill_server
from .experiments import processes

# A run waits so long for its database at its beginning and at its end (docs/records.md).
START_LIMIT = push_thread.START_WAIT_SECONDS
END_LIMIT = push_thread.END_WAIT_SECONDS
GRACE = 5.0
CROWDED = 120.0


@dataclasses.dataclass
class Figures:
    """What a case has shown.

    Args:
        case: What was done.
        sent: How many values the run had recorded.
        found: How many of them the database holds afterwards, each exactly once.
        status: The run's status in the database.
        expected: The status that it should have.
        extra: By how many seconds recording made the run longer; None for a run that was killed.
        limit: What the documentation allows.
    """

    case: str
    sent: int
    found: int
    status: str
    expected: str
    extra: float | None = None
    limit: float = 0.0

    def check(self):
        assert self.found == self.sent > 0, self
        assert self.status == self.expected, self
        # Exactly only where nothing else is measured: a crowded machine makes everything slow.
        alone = os.environ.get("METATOOLKIT_FIGURES")
        limit = self.limit + GRACE if alone else START_LIMIT + END_LIMIT + CROWDED
        assert self.extra is None or self.extra < limit, self


class Worker:
    """A process that records a run, and tells how far it is.

    Args:
        folder: Where the process leaves its notes.
        target: What it does; gets the folder.
    """

    def __init__(self, folder, target):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The process is forked from one that may have seen an earlier test's environment.
        names = ("METATOOLKIT_HOME", "METATOOLKIT_MONGO_URI")
        environment = {name: os.environ.get(name, "") for name in names}
        self.process = processes().Process(target=_work, args=(target, folder, environment))
        self.process.start()

    def wait_for(self, count):
        self._wait(lambda: self.sent() >= count)

    def wait_for_start(self):
        self._wait(lambda: self.uuid)

    def join(self, seconds=180):
        self.process.join(seconds)
        assert not self.process.is_alive()

    def _wait(self, condition):
        deadline = time.monotonic() + 180
        while True:
            # Asked first: between the two questions the process may do the rest, and end.
            alive = self.process.is_alive()
            if condition():
                return
            assert alive and time.monotonic() < deadline, self.note("error")
            time.sleep(0.01)

    def kill(self, number):
        os.kill(self.process.pid, number)

    def sent(self):
        return int(self.note("sent") or 0)

    @property
    def uuid(self):
        return self.note("uuid")

    @property
    def extra(self):
        return float(self.note("extra"))

    def note(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def _work(target, folder, environment):
    os.environ.update(environment)
    for name, value in environment.items():
        if not value:
            del os.environ[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A test that runs in the background may have been started deaf to some signals.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    push_thread.BEAT_SECONDS = 0.2
    if not os.environ.get("METATOOLKIT_FIGURES"):
        # What is left in the spool is pushed later: nothing else depends on how long a run waits.
        push_thread.START_WAIT_SECONDS = push_thread.END_WAIT_SECONDS = 2.0
    try:
        target(folder)
    except Exception as error:
        (folder / "error").write_text(repr(error))
        raise


class External:
    """A server that is configured rather than managed, so that nobody but the test restarts it."""

    def __init__(self, home):
        self.server = ManagedServer(home)
        self.uri = self.server.start()

    @property
    def pid(self):
        return self.server._state()["pid"]

    def kill(self):
        kill_server(self.server.directory.parent)

    def back(self):
        assert self.server.start() == self.uri

    def freeze(self):
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def database(self):
        with pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=20_000) as client:
            yield client.get_default_database()


def sync_all(home, uri):
    """Sync until nothing is spooled, as a user's next commands would."""
    deadline = time.monotonic() + 120
    while list(spooled_runs(home)):
        sync(home, uri)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (home / "spool" / "bad").exists()


def count_up(found):
    """Say how many of the values 0, 1, 2, ... are there, or -1 if one is wrong or there twice."""
    values = [value for part in found for value in part["values"]]
    right = values == [float(step) for step in range(len(values))]
    return len(values) if right else -1


def figures(case, worker, external, expected="COMPLETED", limit=0.0, killed=False):
    """Bring the spool into the database and count what is there."""
    home = Path(os.environ["METATOOLKIT_HOME"])
    sync_all(home, external.uri)
    with external.database() as database:
        document = database["runs"].find_one({"run_uuid": worker.uuid})
        assert document is not None, worker.note("error")
        assert database["runs"].count_documents({"run_uuid": worker.uuid}) == 1
        parts = database["metrics"].find({"run_id": document["_id"], "name": "loss"})
        found = count_up(parts.sort("part", 1))
    sent = worker.sent()
    if killed and found == sent + 1:
        sent += 1
    extra = None if killed else worker.extra
    return Figures(case, sent, found, document["status"], expected, extra, limit)


def same(values, wanted):
    return len(values) == len(wanted) and all(
        (one == other or (one != one and other != other))
        and isinstance(one, bool) == isinstance(other, bool)
        for one, other in zip(values, wanted, strict=True)
    )


def isnan(value):
    return isinstance(value, float) and math.isnan(value)


@contextmanager
def small_disk(path, megabytes):
    """Mount a file system of a few megabytes; yields False where the system does not allow it."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def note_figures(found):
    """Add figures to the file that METATOOLKIT_FIGURES names, for the table in the docs."""
    path = os.environ.get("METATOOLKIT_FIGURES")
    print(found)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(dataclasses.asdict(found)) + "\n")
