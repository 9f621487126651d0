"""A slow line: what is sent at once, and how long it may take."""

import socket
import threading
import time

import pymongo
import pytest

from metatoolkit.records import address, files
from metatoolkit.records.address import Address, open_client
from metatoolkit.records.files import FIRST, LARGEST, SMALLEST, Pace, content_digest, upload
from metatoolkit.records.push import Push
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import RunSpool, utcnow


class SlowLine:
    """A proxy on loopback that sends so many bytes a second towards the server.

    Args:
        path: The server's socket.
        rate: Bytes per second.
    """

    def __init__(self, path, rate):
        self.path, self.rate = path, rate
        self.largest = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.path)
            # A small buffer, or the system would take a whole piece at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
            self._open += [client, server]
            for pair in ((client, server, self.rate), (server, client, 0)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target, rate):
        try:
            while data := source.recv(16_384):
                if rate:
                    time.sleep(len(data) / rate)
                target.sendall(data)
        except OSError:
            return
        finally:
            target.close()

    def close(self):
        for one in self._open:
            one.close()


@pytest.fixture
def line(server):
    path = server.running_uri().partition("//")[2].rpartition("/")[0].replace("%2F", "/")
    made = SlowLine(path, 300_000)
    yield made
    made.close()


def test_a_run_arrives_over_a_slow_line_within_the_limit_of_each_piece(line, home, tmp_path):
    """At once it would take six seconds, and may take two."""
    spool = RunSpool.create(home)
    (tmp_path / "weights.bin").write_bytes(bytes(1_000_000))
    digest, size = spool.add_file(tmp_path / "weights.bin")
    document = {
        "run_uuid": spool.uuid,
        "status": "COMPLETED",
        "start_time": utcnow(),
        "experiment": {"name": "e"},
        "info": {},
        "artifacts": [{"name": "weights.bin", "sha256": digest, "size": size}],
    }
    with open(spool.path / "metrics.jsonl", "w") as file:
        for step in range(20_000):
            file.write(f'["loss", {step}, 0.5, 1.0]\n')
    uri = f"mongodb://127.0.0.1:{line.port}/metatoolkit?socketTimeoutMS=2000"
    with open_client(Address(uri, managed=False)) as client:
        push = Push(spool)
        push._pace.size = SMALLEST
        database = client.get_default_database()
        push(database, document, final=True)
        assert push.verify(database, document)
    spool.close()


def test_a_piece_that_is_too_large_for_the_line_is_cut(line, database):
    uri = f"mongodb://127.0.0.1:{line.port}/metatoolkit?socketTimeoutMS=700&retryWrites=false"
    pace = Pace()
    pace.size = 2 * FIRST
    with open_client(Address(uri, managed=False)) as client:
        slow = client.get_default_database()
        for _ in range(4):
            try:
                upload(slow, "file", [b"x" * 255 * 1024] * 4, pace=pace)
                break
            except pymongo.errors.PyMongoError:
                continue
        assert content_digest(slow, "file", 4 * 255 * 1024)
    assert pace.size < 2 * FIRST


def test_the_size_follows_the_line(monkeypatch):
    class Client:
        class options:
            class pool_options:
                socket_timeout = None

    class Database:
        client = Client

    clock = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: clock[0])
    signs = []
    pace = Pace(lambda: signs.append(pace.size))
    for seconds, size in [(1.0, FIRST), (0.01, LARGEST), (16.0, LARGEST // 16), (100.0, SMALLEST)]:
        with pace.sending(Database, pace.size):
            clock[0] += seconds
        assert pace.size == size
    assert len(signs) == 4
    pace.size = FIRST
    with pytest.raises(ValueError, match="cut"), pace.sending(Database, FIRST):
        raise ValueError("cut")
    assert pace.size == FIRST // 4
    # What is small says nothing of the line.
    with pace.sending(Database, 10):
        clock[0] += 0.001
    assert pace.size == FIRST // 4


@pytest.mark.parametrize("allowed, size, limit", [(10, 1000, 10), (10, 10**6, 50), (60, 10**6, 60)])
def test_a_piece_gets_the_time_that_it_needs(monkeypatch, allowed, size, limit):
    class Database:
        class client:
            class options:
                class pool_options:
                    socket_timeout = allowed

    with Pace().sending(Database, size):
        assert pymongo._csot.get_timeout() == limit


def test_a_time_limit_of_the_connection_string_is_no_shorter_for_pieces():
    uri = "mongodb://127.0.0.1:9/x?timeoutMS=90000"
    with open_client(Address(uri, managed=False)) as client:
        with Pace().sending(client.get_default_database(), 1000):
            assert pymongo._csot.get_timeout() == 90


def test_the_limits_of_the_connection_string_are_kept():
    given = "socketTimeoutMS=61000&SERVERSELECTIONTIMEOUTMS=7000"
    ours = address.SELECTION_SECONDS
    for uri, expected in {
        "mongodb://127.0.0.1:9/x": (ours, 10.0, ours),
        f"mongodb://127.0.0.1:9/x?{given}": (7.0, 61.0, ours),
        "mongodb://127.0.0.1:9/?connectTimeoutMS=3000": (ours, 10.0, 3.0),
        "mongodb://127.0.0.1:9/?socketTimeoutMS=0": (ours, None, ours),
    }.items():
        with open_client(Address(uri, managed=False)) as client:
            options = client.options
            pool = options.pool_options
            found = (options.server_selection_timeout, pool.socket_timeout, pool.connect_timeout)
            assert found == expected, uri


def test_the_managed_server_has_no_such_line(home, mongod):
    with open_client(Address(ManagedServer(home).start(), managed=True)) as client:
        upload(client.get_default_database(), 1, [b"x"])
        client.get_default_database()["fs.chunks"].create_index([("files_id", 1), ("n", 1)])
        assert content_digest(client.get_default_database(), 1, 1)
        assert content_digest(client.get_default_database(), 1, 2) == ""
        assert content_digest(client.get_default_database(), 2, 1) == ""
