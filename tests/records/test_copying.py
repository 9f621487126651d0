"""Everything from one server to another, and servers that ask who is there."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import psutil
import pymongo
import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import RecordsError, StorageError
from metatoolkit.records import syncing
from metatoolkit.records.address import Address, open_client, open_database
from metatoolkit.records.home import private_directory
from metatoolkit.records.server import ManagedServer

from .conftest import kill_server
from .experiments import count_up, run


@pytest.fixture
def other(mongod):
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        yield ManagedServer(Path(name)).start()
        kill_server(Path(name))


def add(path, content):
    def body(_run):
        path.write_bytes(content)
        _run.add_artifact(path)
        _run.log_scalar("nan", float("nan"))
        return count_up(_run)

    return body


def everything(database):
    found = {}
    for name in ("runs", "metrics", "fs.files", "fs.chunks"):
        found[name] = list(database[name].find().sort("_id", 1))
    return found


def test_everything_is_copied_and_read_back(database, other, tmp_path, monkeypatch, capsys):
    for number in range(3):
        run(add(tmp_path / "weights.bin", bytes([number]) * 600_000), number=number)
    database["runs"].update_one({"_id": 2}, {"$set": {"omniboard": {"tags": ["paper"]}}})
    database["omniboard.settings"].insert_one({"_id": 1, "columns": ["lr"]})
    with pymongo.MongoClient(other) as client:
        target = client.get_default_database()
        # Somebody else's run has the number 2 there.
        target["runs"].insert_one({"_id": 2, "run_uuid": "f" * 32, "status": "COMPLETED"})
        monkeypatch.setenv("TARGET", other)
        assert main(["records", "sync", "--to", "TARGET"]) == 0
        told = capsys.readouterr().out
        assert "3 runs with 63 metric values" in told and "2 -> 4" in told
        copied = {one["run_uuid"]: one for one in target["runs"].find()}
        assert len(copied) == 4
        for document in database["runs"].find():
            there = copied[document["run_uuid"]]
            # As text, where NaN equals itself.
            assert repr({**there, "_id": 0}) == repr({**document, "_id": 0})
            metrics = list(database["metrics"].find({"run_id": document["_id"], "name": "loss"}))
            moved = list(target["metrics"].find({"run_id": there["_id"], "name": "loss"}))
            assert [one["values"] for one in metrics] == [one["values"] for one in moved]
        assert target["omniboard.settings"].find_one() == {"_id": 1, "columns": ["lr"]}
        before = everything(target)
        # Once more changes nothing, by a variable that is set already just as well.
        monkeypatch.setenv("METATOOLKIT_MONGO_URI", other)
        assert main(["records", "copy", "--to", other]) == 0
        told = capsys.readouterr()
        assert "0 new files" in told.out and "is called `records sync --to` now" in told.err
        assert repr(everything(target)) == repr(before)
        with records.connect() as connection:
            assert connection.find("config.number == 1")[0].id == 4
            artifact = connection[3].artifacts["weights.bin"]
            assert artifact.read() == b"\2" * 600_000
            assert connection[4].tags == ["paper"]
        # New runs go on with numbers of their own.
        assert records.run_id(run(count_up)) == 5


def test_a_copy_that_differs_is_said(database, other, monkeypatch, tmp_path):
    run(add(tmp_path / "weights.bin", b"right"))
    with pymongo.MongoClient(other) as client:
        target = client.get_default_database()
        artifact = database["runs"].find_one()["artifacts"][0]["file_id"]
        for name, key in (("fs.files", "_id"), ("fs.chunks", "files_id")):
            for entry in database[name].find({key: artifact}):
                changed = {**entry, "data": b"wrong"} if "data" in entry else entry
                target[name].insert_one(changed)
        with pytest.raises(RecordsError, match="differs in the target"):
            syncing.sync_databases(database, target)


def test_the_same_server_or_none_is_refused(server, impatient, capsys):
    assert main(["records", "sync", "--to", server.running_uri()]) == 2
    assert "the same" in capsys.readouterr().err
    assert main(["records", "sync", "--to", "NO_SUCH_VARIABLE"]) == 2
    assert main(["records", "sync", "--to", "mongodb://me:hunter2@127.0.0.1:9/x"]) == 2
    told = capsys.readouterr()
    assert "hunter2" not in told.err + told.out


def test_omniboards_command_is_printed_without_secrets(server, monkeypatch, capsys):
    assert main(["records", "omniboard"]) == 0
    options, rest = capsys.readouterr().out.strip().split(" npx ")
    assert rest == f"--yes omniboard@2.16.1 --mu '{server.running_uri()}'"
    node = shutil.which("node")
    if node is not None:
        # What listens on every interface by itself stays on this machine.
        code = (
            "const s = require('net').createServer().listen(0, () => {"
            " console.log(s.address().address); s.close() })"
        )
        given = {**os.environ, "NODE_OPTIONS": options.partition("=")[2].strip("'")}
        done = subprocess.run([node, "-e", code], env=given, capture_output=True, text=True)
        assert done.stdout == "127.0.0.1\n", done.stderr
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", "mongodb://me:hunter2@host/x")
    assert main(["records", "omniboard"]) == 0
    assert capsys.readouterr().out.strip().endswith('--mu "$METATOOLKIT_MONGO_URI"')


def test_options_of_the_address_are_passed_on():
    address = Address(
        "mongodb://me:p%40ss@localhost:9,localhost:10/mine?authSource=admin&replicaSet=rs&tls=true"
        "&tlsAllowInvalidCertificates=true",
        managed=False,
    )
    with open_client(address) as client:
        options = client.options
        assert options.replica_set_name == "rs"
        assert options.pool_options._credentials.source == "admin"
        assert options.pool_options._ssl_context is not None
        assert open_database(client).name == "mine"
    assert "p%40ss" not in str(address) + repr(address)


@pytest.fixture
def guarded(mongod, tmp_path):
    """A server that wants TLS, a name and a password."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path / "guarded"
    data.mkdir()
    process = subprocess.Popen(
        [str(mongod), "--dbpath", str(data), "--bind_ip", "127.0.0.1", "--port", str(port),
         "--nounixsocket", "--auth", "--tlsMode", "requireTLS",
         "--tlsCertificateKeyFile", str(both), "--wiredTigerCacheSizeGB", "0.25"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        options = f"tls=true&tlsCAFile={certificate}"
        with pymongo.MongoClient(f"mongodb://localhost:{port}/?{options}") as client:
            client.admin.command("createUser", "me", pwd="hunter2", roles=["root"])
        yield f"mongodb://me:hunter2@localhost:{port}/mine?authSource=admin&{options}"
    finally:
        process.kill()
        process.wait(20)


def test_a_server_with_passwords_and_tls(guarded, home, monkeypatch, capfd):
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", guarded)

    def body(_run):
        _run.info["uri"] = guarded
        return count_up(_run)

    run(body)
    assert main(["runs", "list"]) == main(["records", "doctor"]) == 0
    assert main(["db", "status"]) == 1
    with records.connect() as connection:
        assert len(connection[1].metrics["loss"]) == 20
        assert "hunter2" not in repr(connection[1].details())
        assert "hunter2" not in repr(connection.address)
    wrong = guarded.replace("hunter2", "wrong-hunter")
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", wrong)
    assert main(["runs", "list"]) == 2
    run(count_up)
    told = capfd.readouterr()
    assert "Authentication failed" in told.err
    assert "hunter" not in told.err + told.out
    for path in home.rglob("*"):
        # This file is recorded as a source, and knows the password.
        if path.is_file() and path.parent.name != "files":
            assert b"hunter" not in path.read_bytes(), path


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    assert stat.S_IMODE(private_directory(loose).stat().st_mode) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StorageError, match="belongs to another user"):
        private_directory(loose)


def test_another_user_reaches_nothing(home, server, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    run(count_up)
    for folder in (home, *list(home.parents)[:3]):
        os.chmod(folder, 0o755)
    sockets = psutil.Process(server.status()["pid"]).net_connections("unix")
    paths = [one.laddr for one in sockets if one.laddr]
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        reached = 0
        for path in (home / "spool", home / "server", home / "server" / "db"):
            try:
                os.listdir(path)
                reached += 1
            except PermissionError:
                continue
        for path in paths:
            try:
                socket.socket(socket.AF_UNIX).connect(path)
                reached += 1
            except PermissionError:
                continue
        os._exit(reached)
    assert len(paths) >= 1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_homes_have_two_servers(home, server):
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        other = ManagedServer(Path(name))
        assert other.start() != server.running_uri()
        try:
            with records.connect(home=name) as connection:
                assert len(connection.find()) == 0
        finally:
            kill_server(Path(name))


def test_every_file_of_a_run_is_private(home, monkeypatch, tmp_path):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    os.umask(0o022)
    run(add(tmp_path / "weights.bin", b"x"), large="y" * 2_000_000)
    found = [path for path in (home / "spool").rglob("*") if path.is_file()]
    assert len(found) > 5
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_hostile_source_changes_nothing_but_its_own(database, other, tmp_path):
    """What its documents hold is compared and stored, and never read as a condition."""
    with pymongo.MongoClient(other) as client:
        target = client.get_default_database()
        target["runs"].insert_one({"_id": 1, "run_uuid": "a" * 32, "config": {"lr": 1}})
        target["metrics"].insert_one({"_id": "m", "run_id": 1, "name": "loss", "values": [1.0]})
        target["fs.files"].insert_one({"_id": "f", "length": 0, "chunkSize": 255})
        before = everything(target)
        database["runs"].insert_many(
            [
                {"_id": 1, "run_uuid": {"$ne": 1}, "status": "COMPLETED"},
                {"_id": 2, "start_time": {"$exists": True}, "experiment": {"$gt": ""}},
                {"_id": 3, "artifacts": [{"file_id": {"$ne": 1}}, 7], "experiment": {"sources": 5}},
                {"_id": 4, "experiment": {"sources": [["a", {"$ne": 1}], ["b"], 3]}},
            ]
        )
        database["metrics"].insert_one({"_id": 9, "run_id": 1, "name": "loss", "values": 5})
        done = syncing.sync_databases(database, target)
        assert sorted(done.runs) == [1, 2, 3, 4]
        after = everything(target)
        assert after["fs.files"] == before["fs.files"]
        assert after["runs"][0] == before["runs"][0]
        assert {"_id": "m", "run_id": 1, "name": "loss", "values": [1.0]} in after["metrics"]
        database["metrics"].insert_one({"_id": "m", "run_id": 2, "name": "loss", "values": [2.0]})
        with pytest.raises(RecordsError, match="another run's in the target"):
            syncing.sync_databases(database, target)
        assert target["metrics"].find_one({"_id": "m"})["values"] == [1.0]
