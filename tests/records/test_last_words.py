"""Full disks without a server: what is lost is said, and how the run ended is known."""

import errno
import resource
import shutil

import pytest

from metatoolkit import cli, records
from metatoolkit.errors import StorageError
from metatoolkit.records import spool as spooling
from metatoolkit.records.spool import RunSpool, spooled_runs, utcnow
from metatoolkit.records.syncing import sync

from .conftest import kill_server
from .experiments import make, stored
from .faults import small_disk


def test_words_are_written_into_room_that_is_there(home):
    spool = RunSpool.create(home)
    document = {"run_uuid": spool.uuid, "status": "RUNNING", "info": {}}
    spool.write_document(document)
    assert spool.read_document() == document
    now = utcnow()
    for words in ({"status": "FAILED", "fail_trace": ["x" * 5000]}, {"stop_time": now}):
        spool.write_last_words(words)
        assert spool.read_document() == {**document, **words}
    assert (spool.path / "last").stat().st_size == spooling.ROOM
    spool.write_last_words({})
    assert spool.read_document() == document
    with pytest.raises(StorageError, match="No space left"):
        spool.write_last_words({"result": "x" * spooling.ROOM})
    (spool.path / "last").write_bytes(b'{"status": "FAI')
    assert spool.read_document() == document
    (spool.path / "last").unlink()
    assert spool.read_document() == document
    spool.unlock()


def fill(directory):
    """Leave no room, not a byte."""
    number = 0
    for size in (65536, 4096, 1):
        try:
            while True:
                number += 1
                with open(directory / f"filler{number}", "wb", buffering=0) as file:
                    while file.write(b"x" * size) == size:
                        pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def full(home, tmp_path):
    def main(_run):
        print("before")
        for step in range(100):
            _run.log_scalar("loss", step, step)
        fill(home)
        for step in range(100, 2000):
            _run.log_scalar("loss", step, step)
        (tmp_path / "weights.bin").write_bytes(b"w" * 10_000_000)
        _run.add_artifact(tmp_path / "weights.bin")
        _run.add_artifact(tmp_path / "weights.bin", "second.bin")
        print("after")
        return {"accuracy": 0.75}

    return main


def test_a_full_disk_without_a_server_is_told_as_it_is(home, tmp_path, monkeypatch, capsys, mongod):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    # Room for the sources of all tests that the process may have imported.
    with small_disk(home, 8) as mounted:
        if not mounted:
            pytest.skip("no small file system can be mounted here")
        make(full(home, tmp_path)).run()
        told = capsys.readouterr().err
        (spool,) = spooled_runs(home)
        document = spool.read_document()
        held = len((spool.path / "metrics.jsonl").read_bytes().splitlines(True)) - 1
        lost = document["lost"]["values"]
        assert 100 <= held < 2000 and held + lost == 2000
        assert f"{lost:,} values and" in told and "is complete" not in told
        assert document["status"] == "COMPLETED" and document["result"] == {"accuracy": 0.75}
        assert set(document["missing_files"]) >= {"weights.bin", "second.bin"}
        with records.connect() as connection:
            found = connection["latest"]
            assert (found.status, len(found.metrics["loss"])) == ("COMPLETED", held)
        # Brought to a database from a disk with room again.
        for path in home.glob("filler*"):
            path.unlink()
        shutil.copytree(home / "spool", tmp_path / "saved" / "spool")
    monkeypatch.delenv("METATOOLKIT_MONGOD")
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "saved"))
    try:
        assert sync().pushed == [1]
        with records.connect() as connection:
            found = connection[1]
            details = found.details()
            assert found.metrics["loss"].tolist() == list(range(held))
            assert found.status == "COMPLETED" and found.result == {"accuracy": 0.75}
            assert details["lost"]["values"] == lost
            assert set(details["missing_files"]) >= {"weights.bin", "second.bin"}
        capsys.readouterr()
        assert cli.main(["runs", "show", "1"]) == 0
        shown = capsys.readouterr().out
        assert f"{lost} values" in shown and "second.bin" in shown
    finally:
        kill_server(tmp_path / "saved")


@pytest.mark.parametrize("limit", [8_000, 100_000])
def test_files_that_may_not_grow_are_a_full_disk(home, tmp_path, monkeypatch, capsys, limit):
    """As any user can have it: the document itself may not be written any more."""
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")

    def main(_run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for step in range(2000):
            _run.log_scalar("loss", 0.125, step)
        (tmp_path / "weights.bin").write_bytes(b"w" * (limit - 1))
        _run.info["large"] = "x" * 90_000
        return {"accuracy": 0.75}

    try:
        make(main).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    (spool,) = spooled_runs(home)
    document = spool.read_document()
    held = (spool.path / "metrics.jsonl").read_bytes().count(b"\n")
    lost = document.get("lost", {"values": 0})["values"]
    assert held + lost == 2000 and lost == (2000 - held)
    assert document["status"] == "COMPLETED" and document["result"] == {"accuracy": 0.75}
    told = capsys.readouterr().err
    assert (f"{lost:,} values and" in told) if lost else ("is complete" in told)


def test_an_artifact_that_is_lost_leaves_a_trace(database, tmp_path, capsys):
    def main(_run):
        _run.add_artifact(tmp_path / "missing.bin")
        _run.add_artifact(tmp_path / "later.bin")
        (tmp_path / "later.bin").write_bytes(b"there")
        _run.add_artifact(tmp_path / "later.bin")
        return {}

    document, _ = stored(database, records.run_uuid(make(main).run()))
    assert document["missing_files"] == ["missing.bin"]
    assert [one["name"] for one in document["artifacts"]] == ["later.bin"]
    assert "missing.bin is not recorded" in capsys.readouterr().err
