"""Runs that do what nobody expects: the record is complete, and the run goes on."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from metatoolkit import records
from metatoolkit.records import push, push_thread
from metatoolkit.records.document import _without_secrets
from metatoolkit.records.recorder import recorder_of
from metatoolkit.records.spool import RunSpool, spool_directory, spooled_runs, sweep
from metatoolkit.records.syncing import sync

from .experiments import count_up, make, run, stored


@pytest.mark.slow
def test_arrays_of_any_number_fit_into_documents(database):
    rows = np.arange(40 * 60_000).reshape(40, 60_000)

    def main(_run):
        for step, row in enumerate(rows):
            _run.log_scalar("histogram", row, step)
            _run.log_scalar("loss", step, step)

    uuid = records.run_uuid(run(main))
    _, values = stored(database, uuid, "histogram")
    assert np.array_equal(values, rows)
    assert len(stored(database, uuid)[1]) == 40
    assert database["metrics"].count_documents({"name": "histogram"}) == 40


def test_what_outgrows_a_document_is_moved_wherever_it_is(database):
    many = {f"entry{number}": "x" * 90_000 for number in range(200)}

    def main(_run):
        _run.info.update(many)
        for number in range(30):
            _run.log_scalar(f"name{number}", number)
        raise ValueError("y" * 17_000_000)

    experiment = make(main, text="z" * 17_000_000)
    with pytest.raises(ValueError, match="yyy"):
        experiment.run()
    with records.connect() as connection:
        found = connection[records.run_uuid(experiment.current_run)]
        assert found.status == "FAILED"
        assert found.info["artifact"] == "info.json"
        assert found.config["text"] == {"artifact": "config.text.json"}
        assert found.metrics["name7"].tolist() == [7]
        assert len(found.artifacts["info.json"].read()) > 18_000_000


def test_a_metric_for_every_step_keeps_them_all(database, monkeypatch):
    monkeypatch.setattr(push, "NAMES", 10)

    def main(_run):
        for number in range(25):
            _run.log_scalar(f"loss/{number:02}", number)

    run(main)
    with records.connect() as connection:
        assert sorted(connection[1].metrics) == [f"loss/{number:02}" for number in range(25)]
        assert connection[1].metrics["loss/24"].tolist() == [24]


def test_replaced_artifacts_do_not_pile_up(home, database, tmp_path, monkeypatch):
    monkeypatch.setattr(push_thread, "BEAT_SECONDS", 0.05)
    path = tmp_path / "checkpoint.bin"
    kept = []

    def main(_run):
        recorder = recorder_of(_run)
        for number in range(8):
            path.write_bytes(b"%d" % number * 300_000)
            _run.add_artifact(path)
            _run.add_artifact(path, "again.bin")
            time.sleep(0.15)
        kept.extend(one["sha256"] for one in recorder.document.data["artifacts"])
        sources = recorder.document.data["experiment"]["sources"]
        deadline = time.monotonic() + 120
        # A beat deletes what was replaced before it.
        while len(list((recorder.spool.path / "files").iterdir())) > len(sources) + 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    run(main)
    assert len(set(kept)) == 1
    of_runs = {"filename": {"$regex": "^artifact"}}
    assert database["fs.files"].count_documents(of_runs) == 1
    with records.connect() as connection:
        assert connection[1].artifacts["again.bin"].read() == b"7" * 300_000


def test_an_unexpected_error_of_the_database_leaves_the_run_alone(
    home, mongod, monkeypatch, capsys
):
    def broken(*arguments, **options):
        raise OverflowError("never thought of")

    monkeypatch.setattr(push.Push, "__call__", broken)
    assert run(count_up).status == "COMPLETED"
    assert "OverflowError: never thought of" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("METATOOLKIT_HOME", str(home))
    assert sync(home).pushed == [1]


def test_names_and_objects_that_nothing_can_store_stop_no_run(database):
    class Hostile:
        def __repr__(self):
            raise ValueError("no")

    def main(_run):
        _run.log_scalar("\ud800\0name", 1.0)
        _run.info["hostile"] = Hostile()
        _run.info.update({1: "a", "1": "b"})
        _run.open_resource(__file__).close()

    document, values = stored(database, records.run_uuid(run(main)), "\\ud800\0name")
    assert values == [1.0]
    assert "ValueError" in document["info"]["hostile"]
    assert (document["info"]["1"], document["info"]["1'"]) == ("a", "b")
    assert document["resources"][0][0] == __file__


def test_secrets_are_stored_nowhere(home, database, monkeypatch):
    def main(_run):
        _run.info["uri"] = "mongodb://me:hunter2@host/x"
        raise ValueError("cannot reach https://me:hunter2@host")

    experiment = make(main, password="hunter2", api={"key": "k", "hf_token": "hunter2"})
    with pytest.raises(ValueError, match="cannot reach"):
        experiment.run(options={"--comment": "see https://a:hunter2@b"})
    document = database["runs"].find_one({"run_uuid": records.run_uuid(experiment.current_run)})
    assert "hunter2" not in repr(document)
    assert document["config"]["api"] == {"key": "k", "hf_token": "***"}
    assert document["meta"]["comment"] == "see https://b"
    meta = {"options": {"--mongo_db": "me:hunter2@host:1:db"}}
    assert _without_secrets(meta) == {"options": {"--mongo_db": "host:1:db"}}


def test_secrets_of_the_command_line_are_stored_nowhere(database):
    experiment = make(count_up, password="", api={"hf_token": ""})
    words = ["x", "with", "password=hunter2", "api.hf_token='hunter2'", "seed=4"]
    experiment.run_commandline(words)
    document = database["runs"].find_one()
    assert "hunter2" not in repr(document)
    assert document["config"]["password"] == "***" and document["config"]["seed"] == 4
    assert "seed=4" in document["meta"]["options"]["UPDATE"]


def test_the_next_run_pushes_what_lies_in_the_spool(home, mongod, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    first = run(count_up)
    monkeypatch.delenv("METATOOLKIT_MONGOD")

    def main():
        deadline = time.monotonic() + 120
        while len(list(spooled_runs(home))) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    run(main)
    with records.connect() as connection:
        assert len(connection[records.run_uuid(first)].metrics["loss"]) == 20


def test_gpus_are_recorded_once_they_are_used(monkeypatch):
    import types

    import torch

    from metatoolkit.records.capture import gpu_information

    assert gpu_information() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: index * 3 * 2**20)
    properties = types.SimpleNamespace(name="H200", total_memory=140 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = gpu_information()
    # The first one is visible, and has held no tensor.
    assert found["gpus"] == [{"model": "H200", "total_memory": 140 * 1024, "peak_memory": 3}]


# Python 3.12 and later say that a fork beside threads is dangerous: that is what is tested here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_neither_hangs_nor_ends_the_run(home, database):
    stop = threading.Event()
    printed = []

    def chatter():
        while not stop.is_set():
            print("chatter")

    def log_in_a_child(_run):
        child = os.fork()
        if child == 0:
            # Not the handler of the test runner's own time limit.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)
            print("in the child")
            _run.log_scalar("loss", 1.0, 0)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def main(_run):
        thread = threading.Thread(target=chatter)
        thread.start()
        try:
            assert [log_in_a_child(_run) for _ in range(8)] == [0] * 8
        finally:
            stop.set()
            thread.join()
        # From the spool: so much chatter may be cut in the middle of the run's document.
        printed.append(recorder_of(_run).spool.output.read(0))
        reader, writer = os.pipe()
        lingering = os.fork()
        if lingering == 0:
            os.write(writer, b"x")
            time.sleep(600)
            os._exit(0)
        try:
            os.read(reader, 1)
            assert not next(spooled_runs(home)).lock()
            recorder_of(_run).spool.unlock()
            assert next(spooled_runs(home)).lock()
        finally:
            os.kill(lingering, signal.SIGKILL)
            os.waitpid(lingering, 0)
            os.close(reader)
            os.close(writer)

    document, values = stored(database, records.run_uuid(run(main)))
    assert document["status"] == "COMPLETED"
    assert values == [1.0] * 8
    assert printed[0].count(b"in the child") == 8


def test_what_is_logged_and_written_in_bytes_is_captured(database):
    import logging
    import sys

    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)

    def main():
        logger.warning("warned")
        sys.stdout.buffer.write(b"bytes\n")

    try:
        document, _ = stored(database, records.run_uuid(run(main)))
    finally:
        logger.removeHandler(handler)
    assert "warned\n" in document["captured_out"] and "bytes\n" in document["captured_out"]
    assert handler.stream is sys.stderr


def test_the_log_level_of_a_run_ends_with_it():
    import logging

    level = logging.root.level
    within = []
    experiment = make(lambda: within.append(logging.root.level))
    experiment.run(options={"--loglevel": "CRITICAL"})
    assert within == [logging.CRITICAL] and logging.root.level == level
    assert experiment.resolve({"seed": 5})["seed"] == 5
    with pytest.raises(ValueError, match="not 'LOUD'"):
        experiment.run(options={"--loglevel": "LOUD"})
    assert logging.root.level == level


def test_empty_leftovers_are_swept_and_nothing_else(home, database):
    base = spool_directory(home)
    live = RunSpool.create(home)
    live.path.rename(base / f".{live.path.name}")
    live.path = base / f".{live.path.name}"
    for name in (".done-20260101-x", ".20260101-y"):
        (base / name / "files").mkdir(parents=True)
    assert sync(home).pushed == [] and live.path.exists()
    run(count_up)
    with records.connect():
        assert [path.name for path in base.iterdir()] == [live.path.name]


def test_a_run_that_begins_while_another_process_sweeps_gets_a_folder(home, monkeypatch):
    lock = RunSpool.lock
    swept = []

    def lock_late(spool):
        if len(swept) < 3:
            swept.append(spool.path)
            monkeypatch.setattr(RunSpool, "lock", lock)
            sweep(home)
            monkeypatch.setattr(RunSpool, "lock", lock_late)
            assert not spool.path.exists()
        return lock(spool)

    monkeypatch.setattr(RunSpool, "lock", lock_late)
    made = RunSpool.create(home)
    assert len(swept) == 3 and made.path.is_dir() and not lock(RunSpool(made.path))
    made.unlock()


def test_a_run_is_never_born_in_a_folder_that_is_being_deleted(home, monkeypatch):
    """Once the lock is deleted with the rest, anybody could make and take a new one."""
    from metatoolkit.records import spool as spooling

    lock, rmtree = RunSpool.lock, shutil.rmtree
    born = []

    def lock_amid_the_sweep(spool):
        def delete(path, **options):
            (Path(path) / "lock").unlink()
            born.append(lock(spool))
            rmtree(path, **options)

        if not born:
            monkeypatch.setattr(RunSpool, "lock", lock)
            monkeypatch.setattr(spooling.shutil, "rmtree", delete)
            spooling.sweep(home)
            monkeypatch.setattr(spooling.shutil, "rmtree", rmtree)
            return born[0]
        return lock(spool)

    monkeypatch.setattr(RunSpool, "lock", lock_amid_the_sweep)
    made = RunSpool.create(home)
    assert born == [False] and (made.path / "files").is_dir()
    made.unlock()
