import dataclasses

import pytest
import torch

from applications.rotation.experiment import assemble, build_estimator, build_task, experiment
from applications.rotation.settings import DEFAULT, METHODS, NAMED
from applications.rotation.study import COMPARISON
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import EvoGrad, Unrolled
from tests.drawings import bars, lines

QUIET = {"progress": False}


def _run(**updates):
    return experiment.run(named_configs=["smoke"], config_updates={**QUIET, **updates})


def merged(*named, **updates):
    """The default with named configurations and single entries over it."""
    config = {"seed": 1}
    for given in (DEFAULT, *(NAMED[name] for name in named), updates):
        for name, value in given.items():
            deep = isinstance(value, dict) and isinstance(config.get(name), dict)
            config[name] = {**config[name], **value} if deep else value
    return config


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records_the_angle(method):
    run = _run(method=method, seed=3)
    assert run.status == "COMPLETED"
    assert {"test_accuracy", "test_upright_accuracy", "tuning_accuracy"} < set(run.result)
    learns = method != "baseline"
    assert (run.result["angle_degrees"] != 0) == learns
    assert ("peak_memory_bytes" in run.info) == learns
    with records.connect() as database:
        stored = database[records.run_id(run)]
        angle = stored.metrics["angle_degrees"]
        assert angle.index.tolist() == stored.metrics["train_loss"].index.tolist() == [4, 8, 12]
        assert angle.iloc[-1] == run.result["angle_degrees"]
        assert set(stored.artifacts) == {"curves.png", "checkpoint.pt"}


@pytest.mark.slow
def test_an_interrupted_run_resumes_bitwise_and_another_seed_gives_another_result(home, interrupt):
    whole = _run(seed=7).result
    interrupt(lambda: _run(seed=7), 9)
    assert list((home / "checkpoints").glob("*.pt"))
    assert _run(seed=7, resume=True).result == whole
    assert _run(seed=6).result != whole


def test_an_angle_is_learned_in_a_few_steps():
    """Exact hypergradients lead from 0 toward +30°, and away from −30°."""
    ends = []
    for degrees in (30.0, -30.0):
        assembly = assemble(merged("smoke", method="second_order", degrees=degrees, meta_lr=0.03))
        assembly.trainer.fit(
            assembly.train_batches, assembly.valid_batches, steps=60, progress=False
        )
        ends.append(assembly.trainer.problem.meta.degrees)
    assert ends[0] > 10
    assert ends[1] < -10


def test_estimators_follow_the_configuration():
    config = merged(method="evograd", lr=0.5)
    assert build_estimator(config).learning_rate == 0.5
    published = build_estimator(merged("mnist", method="evograd"))
    assert isinstance(published, EvoGrad)
    assert (published.candidates, published.sigma, published.temperature) == (2, 1e-3, 0.05)
    assert published.learning_rate == pytest.approx(1e-5)
    assert isinstance(build_estimator(merged(method="second_order")), Unrolled)
    assert build_estimator(merged(method="baseline")) is None


def test_the_papers_protocol_on_mnist(monkeypatch):
    import metatoolkit as mt

    images = torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8)
    labels = torch.zeros(60_000, dtype=torch.int64)
    names = tuple(str(digit) for digit in range(10))
    mnist = mt.tasks.Classification(
        "mnist", images, labels, images[:10], labels[:10], names, (0.1307,), (0.3081,)
    )
    monkeypatch.setattr(mt.tasks, "load_dataset", lambda name, root: mnist)
    assembly = assemble(merged("mnist", method="evograd"))
    assert assembly.trainer.order == "inner_first"
    assert assembly.train_batches.epoch_length == 313
    assert assembly.valid_batches.epoch_length == 79
    assert NAMED["mnist"]["steps"] == 1565
    parameters = assembly.trainer.problem.model.parameters()
    assert sum(parameter.numel() for parameter in parameters) == 61_706
    task = assembly.task
    assert task.train_indices.tolist() == list(range(40_000))
    assert task.valid_indices.tolist() == list(range(50_000, 60_000))


def test_outside_of_the_images_is_their_background():
    task = build_task(merged())
    corner = task.valid.images[:, :, 0, 0]
    assert torch.allclose(corner, corner.new_tensor(task.background).expand_as(corner), atol=1e-5)
    meta = assemble(merged()).trainer.problem.meta
    assert meta.fill.tolist() == pytest.approx(task.background)


@pytest.mark.parametrize(
    "labels",
    [("second order", "EvoGrad"), pytest.param((), marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_the_figure_is_drawn_from_the_records(tmp_path, drawn, labels):
    rows = {
        label: dataclasses.replace(row, named=("smoke",))
        for label, row in COMPARISON.rows.items()
        if label in labels or not labels
    }
    study = dataclasses.replace(COMPARISON, rows=rows, seeds=(1,), claims=())
    jobs = jobs_of(study)
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert len(frame) == len(study.rows)
        shown = frame[frame["row"] == "EvoGrad"]
        for column in study.columns:
            assert shown[column.header].notna().all(), column.header
        study.draw(frame, tmp_path / "rotation.png")
        *angles, accuracy = drawn.axes("rotation.png", tmp_path)
        # A panel for each method that learns the angle: its curve, and the angle of the test.
        learned = frame[[label in (axis.get_title() for axis in angles) for label in frame["row"]]]
        assert [axis.get_title() for axis in angles] == learned["row"].tolist()
        assert {"EvoGrad", "second order"} <= set(learned["row"])
        for axis, run in zip(angles, learned["run"], strict=True):
            curve = run.metrics["angle_degrees"]
            steps, values = lines(axis)["seed 1"]
            assert steps == curve.index.tolist() and values == curve.tolist()
            assert set(axis.lines[-1].get_ydata()) == {run.config["degrees"]}
        expected = frame.set_index("row")["rotated test images [%]"].to_dict()
        assert bars(accuracy) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "evogard"}, UnknownNameError, "Did you mean 'evograd'"),
        ({"batch_size": 0}, ConfigurationError, "batch_size is 0"),
        ({"valid_batch_size": -3}, ConfigurationError, "batch_size is -3"),
        ({"evograd": {"candidates": 1}}, ConfigurationError, "candidates is 1; .*2"),
        ({"evograd": {"sigma": 0.0}}, ConfigurationError, "sigma is 0"),
        ({"valid_examples": 2000}, DataError, "1438 training images; 2000"),
        ({"tuning_examples": -1}, ConfigurationError, "tuning_examples is -1"),
        ({"resize": {"side": 4}}, DataError, "at least 12×12"),
        ({"accuracy_every": 0}, ConfigurationError, "accuracy_every is 0"),
        ({"steps": 0}, ConfigurationError, "steps is 0"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        _run(**updates)


def test_a_missing_data_folder_says_how_to_lay_it_out(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(self):
        raise OSError("no route")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(DataError, match=r"no route.*ubyte\.gz.*MNIST/raw exists"):
        experiment.run(
            named_configs=["mnist"],
            config_updates={**QUIET, "dataset": "mnist", "data_root": str(tmp_path / "none")},
        )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("batch_size=0", "batch_size is 0"),
        ("evograd.candidates=1", "evograd.candidates is 1"),
        ("evograd.sigma=-1.0", "evograd.sigma is -1.0"),
        ("methdo=baseline", "Did you mean 'method'"),
    ],
)
def test_command_line_tells_what_is_accepted(entry, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        experiment.run_commandline(["rotation", "with", "smoke", entry])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed or f". {message}" in printed
    assert "Traceback" not in printed
