"""What lies in the spool after a power failure, and what a sync makes of it."""

import json
import os
import shutil
import threading
import time

import pytest

from metatoolkit import records
from metatoolkit.records import query, syncing
from metatoolkit.records.home import process_identity
from metatoolkit.records.push import Push
from metatoolkit.records.recorder import recorder_of
from metatoolkit.records.spool import RunSpool, spool_directory, spooled_runs, utcnow
from metatoolkit.records.syncing import sync

from .experiments import count_up, make, run, stored


def cut_power(home, name, main, **config):
    """Run, and return a copy of the spool as it was in mid-run, in the state of a dead process."""
    copied = home.parent / name

    def body(_run):
        recorder = recorder_of(_run)

        def snapshot():
            recorder._thread.wake()
            recorder.document.write()
            # Files that are about to take the place of others come and go meanwhile.
            shutil.copytree(recorder.spool.path, copied, ignore=shutil.ignore_patterns("*.new"))

        return main(_run, snapshot)

    done = run(body, **config)
    document = json.loads((copied / "run.json").read_text())
    document["proc"]["ticks"] = 1
    (copied / "run.json").write_text(json.dumps(document))
    target = spool_directory(home) / f"20260101-{records.run_uuid(done)}"
    shutil.move(copied, target)
    (target / "lock").unlink()
    return done, target


@pytest.mark.parametrize("case", ["copied", "values lost", "all lost", "torn", "output lost"])
def test_a_sync_never_shrinks_what_the_database_has(home, database, tmp_path, case):
    (tmp_path / "weights.bin").write_bytes(b"w" * 300_000)

    def main(_run, snapshot):
        print("first line")
        for step in range(50):
            _run.log_scalar("loss", step / 7, step)
        _run.info["early"] = 1
        snapshot()
        for step in range(50, 80):
            _run.log_scalar("loss", step / 7, step)
        for step in range(3):
            _run.log_scalar("late", step, step)
        _run.info["late"] = 2
        _run.add_artifact(tmp_path / "weights.bin")
        print("second line")
        return {"accuracy": 0.5}

    done, spool = cut_power(home, "cut", main)
    database["runs"].update_one({}, {"$set": {"status": "RUNNING"}})
    before, _ = stored(database, records.run_uuid(done))
    metrics = spool / "metrics.jsonl"
    if case == "values lost":
        metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(True)[:20]))
    elif case == "torn":
        metrics.write_bytes(metrics.read_bytes()[:-7])
    elif case == "all lost":
        metrics.unlink()
        metrics.touch()
        shutil.rmtree(spool / "files")
        (spool / "files").mkdir()
    elif case == "output lost":
        (spool / "cout.txt").write_bytes(b"")
    assert sync(home).failed == {} and not list(spooled_runs(home))
    after, values = stored(database, records.run_uuid(done))
    assert values == [step / 7 for step in range(80)]
    assert after["status"] == "INTERRUPTED"
    for name in ("summary", "info", "artifacts", "captured_out", "result", "config", "experiment"):
        assert after[name] == before[name], name
    assert after["stop_time"] >= before["heartbeat"]
    with records.connect() as connection:
        found = connection.find("metrics.loss.last > 11 and info.late == 2")[0]
        assert found.metrics["late"].tolist() == [0, 1, 2]
        assert len(found.artifacts["weights.bin"].read()) == 300_000
    # A run that the database knows to have ended stays so.
    assert sync(home).pushed == []


def test_a_spool_that_is_behind_ends_no_run_that_is_complete(home, database):
    done, _ = cut_power(home, "cut", lambda _run, snapshot: [snapshot(), count_up(_run)][1])
    before, _ = stored(database, records.run_uuid(done))
    assert sync(home).failed == {} and not list(spooled_runs(home))
    after, values = stored(database, records.run_uuid(done))
    assert len(values) == 20 and after == before
    assert after["status"] == "COMPLETED" and after["result"] == {"accuracy": 0.9}


def test_values_that_differ_from_the_spool_are_no_longer_copy_of_it(home, database):
    """The spool lacks a value in the middle, and the database has more than it."""

    def main(_run, snapshot):
        count_up(_run)
        snapshot()
        _run.log_scalar("loss", 5.0, 20)

    _, spool = cut_power(home, "cut", main)
    lines = (spool / "metrics.jsonl").read_bytes().splitlines(True)
    (spool / "metrics.jsonl").write_bytes(b"".join([*lines[:5], *lines[6:]]))
    report = sync(home)
    assert report.pushed == [] and "does not hold" in next(iter(report.failed.values()))
    # Neither is lost.
    assert len(database["metrics"].find_one()["values"]) == 21
    assert list(spooled_runs(home))


def test_what_is_pushed_is_on_the_disk_before(home, database, monkeypatch):
    happened = []
    push, fdatasync, fsync = Push.__call__, os.fdatasync, os.fsync

    def synced(descriptor, true):
        happened.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        return true(descriptor)

    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced(descriptor, fdatasync))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced(descriptor, fsync))

    def pushed(self, *arguments, **options):
        happened.append("push")
        return push(self, *arguments, **options)

    monkeypatch.setattr(Push, "__call__", pushed)
    done = run(count_up)
    first = happened.index("push")
    spool = next(name for name in happened if records.run_uuid(done) in name)
    for name in ("metrics.jsonl", "cout.txt", "run.json.new", spool):
        assert name in happened[:first], happened
    beats = "".join(
        {"metrics.jsonl": "m", "run.json.new": "d", "push": "p"}.get(o, "") for o in happened
    )
    assert "mdp" in beats and beats.count("p") <= beats.count("d") <= beats.count("m")


def planted(home, count=1):
    """Runs of another time whose process is gone."""
    made = []
    dead = {**process_identity(), "ticks": 1}
    for number in range(count):
        spool = RunSpool.create(home)
        document = {"run_uuid": spool.uuid, "status": "RUNNING", "start_time": utcnow()}
        document |= {
            "experiment": {"name": f"e{number}"},
            "info": {},
            "artifacts": [],
            "proc": dead,
        }
        spool.write_document(document)
        for file in (spool.metrics, spool.output):
            file.close()
        spool.unlock()
        made.append(spool)
    return made


def test_a_query_does_not_wait_for_a_sync(home, database, monkeypatch):
    planted(home)
    release = syncing.threading.Event()
    monkeypatch.setattr(query, "SYNC_SECONDS", 0.2)
    monkeypatch.setattr(syncing, "_sync_run", lambda *arguments: release.wait(60) and None)
    try:
        with records.connect() as connection:
            assert [one.status for one in connection.find()] == ["PROBABLY_DEAD"]
    finally:
        release.set()


def test_a_query_does_not_fail_by_a_sync_nor_move_a_run_aside(home, database, capsys):
    (spool,) = planted(home)
    document = spool.read_document()
    spool.write_document({**document, "artifacts": "no list"})
    for _ in range(5):
        with records.connect() as connection:
            assert len(connection.find()) <= 1
    assert spool.path.exists() and not (spool_directory(home) / syncing.BAD).exists()
    assert capsys.readouterr().err.count("earlier runs stay in the spool") == 5
    # Who asks for it by name moves it after three attempts.
    for _ in range(3):
        assert sync(home).failed
    assert not spool.path.exists() and (spool_directory(home) / syncing.BAD).exists()


def test_a_planted_document_stops_no_query(home, database, monkeypatch):
    (spool,) = planted(home)
    monkeypatch.setattr(syncing, "_sync_run", lambda *arguments: None)
    database["runs"].insert_one({"_id": 1, "run_uuid": [spool.uuid, {"a": 1}], "status": "FAILED"})
    with records.connect() as connection:
        assert [one.id for one in connection.find("status == 'FAILED'")] == [1]


def test_a_query_finds_what_lay_in_the_spool(home, database):
    planted(home, 3)
    with records.connect() as connection:
        assert sorted(one.experiment for one in connection.find()) == ["e0", "e1", "e2"]


def test_a_live_run_whose_documents_are_deleted_leaves_queries_alone(home, database):
    def main(_run):
        count_up(_run)
        recorder = recorder_of(_run)
        deadline = time.monotonic() + 60
        while database["metrics"].count_documents({}) == 0:
            recorder._thread.wake()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        database["runs"].delete_many({})
        with records.connect() as connection:
            assert connection.find("status == 'FAILED'").runs() == []
        return {"accuracy": 1.0}

    done = run(main)
    document, values = stored(database, records.run_uuid(done))
    assert document["status"] == "COMPLETED" and len(values) == 20
    assert make(count_up).run().status == "COMPLETED"


def test_a_live_run_whose_folder_is_deleted_reaches_the_database(home, database, tmp_path, capsys):
    (tmp_path / "weights.bin").write_bytes(b"w")

    def main(_run):
        for step in range(20):
            _run.log_scalar("loss", step, step)
            if step == 10:
                # In one step, or a beat may write while it is being deleted.
                recorder_of(_run).spool.path.rename(tmp_path / "gone")
                with records.connect() as connection:
                    assert len(connection.find()) == 1
        print("printed afterwards")
        _run.add_artifact(tmp_path / "weights.bin")
        return {"accuracy": 0.5}

    done = run(main)
    document, values = stored(database, records.run_uuid(done))
    assert values == list(range(20))
    assert document["status"] == "COMPLETED" and document["result"] == {"accuracy": 0.5}
    assert "printed afterwards" in document["captured_out"]
    assert document["missing_files"] == ["weights.bin"]
    assert "cannot write" in capsys.readouterr().err
    assert list(spool_directory(home).iterdir()) == []


def test_a_run_without_folder_and_server_says_that_it_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")

    def main(_run):
        recorder_of(_run).spool.path.rename(tmp_path / "gone")

    run(main)
    told = capsys.readouterr().err
    assert "nothing is kept of the run" in told and "is complete" not in told


def test_a_query_waits_for_what_a_run_beside_it_pushes(home, monkeypatch):
    begun, goes_on, calls = threading.Event(), threading.Event(), []

    def slow(*arguments, **options):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            begun.set()
            assert goes_on.wait(30)
        return syncing.Report()

    monkeypatch.setattr(syncing, "sync", slow)
    syncing.sync_beside(home)
    assert begun.wait(30)
    syncing.sync_beside(home, seconds=0.3)
    assert len(calls) == 1
    goes_on.set()
    syncing.sync_beside(home, seconds=30)
    assert len(calls) > 1
