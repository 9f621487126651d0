import signal
import subprocess
import sys
import time

import pytest

from applications.label_noise import quickstart
from applications.label_noise.experiment import build_estimator, experiment, settings_of
from applications.label_noise.settings import DEFAULT, METHODS
from metatoolkit import records
from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.records.server import ManagedServer

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    yield folder
    ManagedServer(folder).stop()


@pytest.fixture(autouse=True)
def records_home(home, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(home))
    monkeypatch.delenv("METATOOLKIT_MONGO_URI", raising=False)


def _run(**updates):
    return experiment.run(named_configs=["smoke"], config_updates={**QUIET, **updates})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records(method):
    run = _run(method=method, seed=3)
    assert run.status == "COMPLETED"
    assert 0 <= run.result["test_accuracy"] <= 1
    assert run.info["milliseconds_per_step"] > 0
    meta_learns = method in ("evograd", "second_order")
    assert (run.result["lambda_distance"] > 0) == meta_learns
    assert ("peak_memory_bytes" in run.info) == meta_learns


def test_figures_and_checkpoint_are_in_the_database(tmp_path):
    run = _run(method="second_order", seed=8)
    with records.connect() as database:
        stored = database[records.run_id(run)]
        assert set(stored.artifacts) == {
            "weights.png",
            "weights.csv",
            "curves.png",
            "checkpoint.pt",
        }
        assert len(stored.metrics["valid_loss"]) == 3
        path = stored.artifacts["weights.csv"].save(tmp_path)
    rows = path.read_text().splitlines()
    assert rows[0] == "loss,weight,corrupted"
    corrupted = sum(row.endswith("True") for row in rows[1:])
    assert 0.35 < corrupted / (len(rows) - 1) < 0.45


def test_same_seed_gives_the_same_result():
    assert _run(seed=5).result == _run(seed=5).result
    assert _run(seed=5).result != _run(seed=6).result


def test_an_interrupted_run_resumes_bitwise(home):
    from metatoolkit.training import MetaTrainer

    whole = _run(seed=7).result
    original = MetaTrainer.meta_step

    def stop(self, *arguments):
        if self.steps_done == 17:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetaTrainer, "meta_step", stop)
        with pytest.raises(KeyboardInterrupt):
            _run(seed=7)
    assert list((home / "checkpoints").glob("*.pt"))
    resumed = _run(seed=7, resume=True)
    assert resumed.result == whole
    assert not list((home / "checkpoints").iterdir())


def test_a_killed_run_resumes_bitwise_and_its_record_tells(home):
    command = [sys.executable, "-m", "applications.label_noise", "with", "smoke", "seed=11"]
    command += ["steps=200", "checkpoint_every=5", "log_every=1", "progress=False"]
    whole = subprocess.run([*command, "checkpoint_every=200"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((home / "checkpoints").glob("*.pt")):
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = subprocess.run([*command, "resume=True"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    with records.connect() as database:
        runs = list(database.find("config.seed == 11").sort("start_time"))
        assert [run.status for run in runs] == ["COMPLETED", "INTERRUPTED", "COMPLETED"]
        assert runs[2].result == runs[0].result
        assert runs[2].details()["meta"]["resumed_from"] == runs[1].uuid
        for name in ("train_loss", "valid_loss", "test_accuracy", "lambda_distance"):
            expected, got = runs[0].metrics[name], runs[2].metrics[name]
            assert expected.index.tolist() == got.index.tolist()
            assert expected.tolist() == got.tolist()


def test_settings_follow_the_method():
    config = {**DEFAULT, "seed": 0}
    assert isinstance(build_estimator(settings_of(config)), EvoGrad)
    assert isinstance(build_estimator(settings_of({**config, "method": "second_order"})), Unrolled)
    assert build_estimator(settings_of({**config, "method": "plain"})) is None
    chosen = settings_of({**config, "lr": 0.5})
    assert chosen["lr"] == 0.5
    assert build_estimator(chosen).learning_rate == 0.5


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "evogard"}, UnknownNameError, "evograd"),
        ({"dataset": "digit"}, UnknownNameError, "digits"),
        ({"meta_per_class": 500}, DataError, "examples"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        _run(**updates)


def test_command_line_names_the_nearest_method():
    done = subprocess.run(
        [sys.executable, "-m", "applications.label_noise", "with", "smoke", "method=evogard"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Did you mean 'evograd'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_quickstart_table_and_figure(tmp_path, capsys):
    results = [
        {
            "row": row,
            "seed": seed,
            "test_accuracy": 0.5 + 0.1 * seed,
            "weight_clean": 0.4,
            "weight_corrupted": 0.1,
            "lambda_distance": 1.0,
            "milliseconds_per_step": 2.0,
        }
        for row in quickstart.ROWS
        for seed in (1, 2, 3)
    ]
    quickstart.show(results)
    printed = capsys.readouterr().out
    assert "70.00 ± 10.00" in printed
    quickstart.draw(results, tmp_path / "out" / "figure.png")
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000


def test_quickstart_refuses_no_seeds(capsys):
    assert quickstart.main(["--seeds", "0"]) == 2
    assert "--seeds" in capsys.readouterr().err
