import enum
import math
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, StorageError
from metatoolkit.records import address
from metatoolkit.records.recorder import RunRecorder, recorder_of
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import spool_directory
from metatoolkit.records.syncing import sync

from .experiments import UNREACHABLE, count_up, make, run, stored


class Color(enum.Enum):
    RED = 1


def test_a_run_is_in_the_database_in_sacreds_schema_and_out_of_the_spool(home, database, tmp_path):
    def main(_run):
        print("printed")
        count_up(_run)
        (tmp_path / "weights.txt").write_text("content")
        _run.add_artifact(tmp_path / "weights.txt", "weights.txt")
        _run.info["note"] = "noted"
        return {"accuracy": np.float64(0.9)}

    done = run(main, lr=0.1)
    document, values = stored(database, records.run_uuid(done))

    assert values == [1.0 / (step + 1) for step in range(20)]
    assert document["_id"] == 1 == done._id == records.run_id(done)
    assert document["status"] == "COMPLETED"
    assert document["config"] == {"method": "evograd", "seed": 3, "lr": 0.1}
    assert document["result"] == {"accuracy": 0.9}
    assert document["info"]["note"] == "noted"
    metric = database["metrics"].find_one({"run_id": 1})
    assert document["info"]["metrics"] == [{"name": "loss", "id": str(metric["_id"])}]
    assert len(metric["steps"]) == len(metric["timestamps"]) == 20
    assert "printed" in document["captured_out"]
    assert document["proc"]["pid"] == os.getpid()
    assert document["start_time"] <= document["stop_time"]
    assert any(name.startswith("torch==") for name in document["experiment"]["dependencies"])
    assert any(name.endswith("observer.py") for name, _ in document["experiment"]["sources"])
    artifact = database["fs.files"].find_one({"_id": document["artifacts"][0]["file_id"]})
    assert artifact["filename"] == "artifact://runs/1/weights.txt"
    assert artifact["contentType"] == "text/plain"
    assert list(spool_directory(home).iterdir()) == []


@pytest.mark.parametrize("value", [{"loss": 1.0}, "0.5", None, 1j, object()])
def test_a_value_that_is_no_number_is_refused_at_the_call(monkeypatch, value):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")

    def main(_run):
        with pytest.raises(ConfigurationError, match="'loss' takes a number"):
            _run.log_scalar("loss", value, 0)

    run(main)


def test_documents_of_every_kind_are_kept(database):
    circle: dict = {}
    circle["self"] = circle

    def main(_run):
        _run.info.update(
            {
                "a.b": 1,
                "$c": 2,
                3: float("nan"),
                "path": Path("/tmp/x"),
                "color": Color.RED,
                "set": {2, 1},
                "huge": 2**70,
                "circle": circle,
                "device": torch.device("cpu"),
                "array": np.arange(3),
                "surrogate": "\ud800",
                "url": "https://me:token@host/x",
            }
        )
        return {"tensor": torch.tensor(2.0), "none": None}

    document, _ = stored(database, records.run_uuid(run(main, odd=(1, 2))))
    with records.connect() as connection:
        info = connection[1].info
    assert (info["a.b"], info["$c"], info["path"], info["color"]) == (1, 2, "/tmp/x", "RED")
    assert math.isnan(info["3"])
    assert info["set"] == [1, 2]
    assert info["huge"] == float(2**70)
    assert info["circle"] == {"self": "<recursion>"}
    assert info["array"] == [0, 1, 2]
    assert info["url"] == "https://host/x"
    assert document["result"] == {"tensor": 2.0, "none": None}
    assert document["config"]["odd"] == [1, 2]


def test_steps_are_counted_where_they_are_left_out(database):
    def main(_run):
        for value in (5.0, 6.0):
            _run.log_scalar("loss", value)
        _run.log_scalar("loss", 7.0, 10)
        _run.log_scalar("loss", 8.0)

    run(main)
    assert database["metrics"].find_one({"name": "loss"})["steps"] == [0, 1, 10, 11]


def test_an_exception_is_recorded_with_its_trace(database):
    def main(_run):
        count_up(_run, 7)
        raise ValueError("the reason")

    experiment = make(main)
    with pytest.raises(ValueError, match="the reason"):
        experiment.run()
    document, values = stored(database, records.run_uuid(experiment.current_run))
    assert document["status"] == "FAILED"
    assert "the reason" in "".join(document["fail_trace"])
    assert len(values) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_the_run_and_its_record_is_complete(database, default_signals, number):
    before = signal.getsignal(number)

    def main(_run):
        count_up(_run)
        try:
            os.kill(os.getpid(), number)
            time.sleep(120)
        except Exception:
            pytest.fail("the interrupt was swallowed")

    experiment = make(main)
    with pytest.raises(KeyboardInterrupt):
        experiment.run()
    document, values = stored(database, records.run_uuid(experiment.current_run))
    assert document["status"] == "INTERRUPTED"
    assert len(values) == 20
    assert signal.getsignal(number) is before
    if number != signal.SIGINT:
        assert document["status_note"] == f"ended by {number.name}"


def test_an_unreachable_server_is_one_line_and_the_run_goes_on(
    home, mongod, monkeypatch, impatient, capsys
):
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", UNREACHABLE)
    done = run(count_up)
    assert done.status == "COMPLETED"
    told = capsys.readouterr().err
    assert told.count("no MongoDB server answers at mongodb://127.0.0.1:9/nowhere") == 2
    assert "secret" not in told
    assert "secret" not in "".join(
        path.read_text("utf-8") for name in ("run.json", "cout.txt") for path in home.rglob(name)
    )
    monkeypatch.delenv("METATOOLKIT_MONGO_URI")
    monkeypatch.setattr(address, "SELECTION_SECONDS", 30.0)
    assert sync(home).pushed == [1]
    with records.connect() as connection:
        assert len(connection[1].metrics["loss"]) == 20


def test_a_data_directory_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageError, match="METATOOLKIT_HOME"):
        run(count_up)


def test_a_full_disk_keeps_the_values_in_memory_and_pushes_them(home, database, capsys):
    def main(_run):
        recorder = recorder_of(_run)
        full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
        files = (recorder.spool.metrics, recorder.spool.output)
        real = [file._descriptor for file in files]
        for file in files:
            file._descriptor = full
        print("printed on a full disk")
        count_up(_run)
        for file, descriptor in zip(files, real, strict=True):
            file._descriptor = descriptor
        os.close(full)

    done = run(main)
    document, values = stored(database, records.run_uuid(done))
    assert len(values) == 20
    assert "printed on a full disk" in document["captured_out"]
    assert capsys.readouterr().err.count("No space left on device") == 2


def test_a_resumed_run_names_the_one_that_it_continues(database):
    first = run(count_up)

    def main(_run):
        records.mark_resumed(_run, records.run_uuid(first))

    document, _ = stored(database, records.run_uuid(run(main)))
    assert document["meta"]["resumed_from"] == records.run_uuid(first)


def test_an_artifact_of_the_same_name_replaces_the_former(database, tmp_path):
    path = tmp_path / "checkpoint.bin"

    def main(_run):
        for content in (b"first", b"second", b"x" * 600_000):
            path.write_bytes(content)
            _run.add_artifact(path)
        _run.add_artifact(tmp_path / "missing.bin")

    run(main)
    with records.connect() as connection:
        assert list(connection[1].artifacts) == ["checkpoint.bin"]
        assert connection[1].artifacts["checkpoint.bin"].read() == b"x" * 600_000


def test_runs_inside_runs_are_recorded_apart(database):
    inner = make(count_up)

    def main(_run):
        _run.log_scalar("loss", 1.0)
        inner.run()
        _run.log_scalar("loss", 2.0)

    outer = run(main)
    assert stored(database, records.run_uuid(outer))[1] == [1.0, 2.0]
    assert len(stored(database, records.run_uuid(inner.current_run))[1]) == 20


def test_a_run_outside_the_main_thread_is_recorded(database):
    thread = threading.Thread(target=run, args=(count_up,))
    thread.start()
    thread.join()
    assert database["runs"].count_documents({"status": "COMPLETED"}) == 1


def test_torch_is_seeded_before_the_run(monkeypatch):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    drawn = []

    def main(_run):
        drawn.append((torch.rand(()).item(), np.random.rand(), __import__("random").random()))

    for _ in range(2):
        run(main)
    assert drawn[0] == drawn[1]


def test_without_any_server_the_spool_holds_the_run(home, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    done = run(count_up)
    assert "no mongod is installed" in capsys.readouterr().err
    with records.connect() as connection:
        found = connection.find("config.method == 'evograd' and result.accuracy > 0.8")[0]
        assert found.uuid == records.run_uuid(done)
        assert len(found.metrics["loss"]) == 20
        assert connection[found.id].status == "COMPLETED"
    assert isinstance(recorder_of(done), RunRecorder)
    assert not ManagedServer(home).status()["running"]


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 10**400])
def test_a_step_that_the_database_cannot_hold_is_refused_at_the_call(database, step):
    def main(_run):
        with pytest.raises(ConfigurationError, match="'loss' has up to 64 bits"):
            _run.log_scalar("loss", 0.5, step)
        with pytest.raises(ConfigurationError, match="up to 1000 characters, not 20000"):
            _run.log_scalar("x" * 20_000, 0.5)
        _run.log_scalar("loss", 0.25, 2**63 - 1)
        with pytest.raises(ConfigurationError, match="64 bits"):
            _run.log_scalar("loss", 0.5)
        _run.log_scalar("loss", 0.125, -(2**63))

    _, values = stored(database, records.run_uuid(run(main)))
    assert values == [0.25, 0.125]
