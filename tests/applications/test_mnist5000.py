"""Rotation and label noise on 5,000 images of MNIST; noise of the same number and shape here."""

import numpy as np
import pytest

from applications.label_noise.experiment import assemble as assemble_label_noise
from applications.label_noise.settings import TUNED
from applications.label_noise.study import MNIST5000 as LABEL_NOISE
from applications.rotation.experiment import assemble as assemble_rotation
from applications.rotation.study import COMPARISON
from applications.rotation.study import MNIST5000 as ROTATION
from metatoolkit import records
from metatoolkit.experiments.components import tuned_as
from metatoolkit.experiments.jobs import configuration_of, run_job
from metatoolkit.experiments.studies import collect, jobs_of
from tests.drawings import bars


@pytest.fixture(autouse=True)
def images(monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (5000, 784), dtype=np.uint8)
    digits = np.repeat(np.arange(10), 500)
    monkeypatch.setattr("metatoolkit.tasks.mnist5000._read", lambda: (pixels, digits))


def configurations(study):
    return {job.label: configuration_of(job) for job in jobs_of(study, seeds=(1,))}


def test_rotation_takes_the_settings_that_were_published():
    config = configurations(ROTATION)["EvoGrad"]
    assert config["interpolation"] == "nearest"
    assert (config["lr"], config["meta_lr"]) == (1e-3, 1e-2)
    own = config["evograd"]
    assert (own["candidates"], own["sigma"], own["temperature"]) == (2, 1e-3, 0.05)
    assembly = assemble_rotation(config)
    task, model = assembly.task, assembly.trainer.problem.model
    # The published LeNet, on images of their own size.
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_706
    sizes = [len(part.labels) for part in (task.train, task.valid, task.tuning, task.test)]
    assert sizes == [3000, 500, 500, 1000]
    assert task.background == pytest.approx((-0.1307 / 0.3081,))
    for label in ("baseline", "EvoGrad"):
        assert ROTATION.rows[label].published == COMPARISON.rows[label].published
    assert not ROTATION.rows["second order"].published


def test_label_noise_takes_what_was_tuned_on_the_smaller_digits():
    for label, config in configurations(LABEL_NOISE).items():
        tuned = TUNED[tuned_as(config, TUNED)]
        assert config["lr"] == tuned["lr"], label
        assembly = assemble_label_noise(config)
        assert assembly.trainer.problem.model(assembly.task.test.images[:2].float()).shape == (
            2,
            10,
        )
        count = 4000 - 100 - 100
        assert len(assembly.task.train.labels) == count
        assert assembly.task.valid.labels.bincount().tolist() == [10] * 10
        assert float(assembly.task.is_corrupted.double().mean()) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("study", "header"),
    [
        (ROTATION, "rotated test images [%]"),
        pytest.param(LABEL_NOISE, "test accuracy [%]", marks=pytest.mark.slow),
    ],
    ids=["rotation", "label_noise"],
)
def test_every_row_runs_and_is_drawn(study, header, tmp_path, drawn):
    jobs = jobs_of(study, seeds=(1,), updates={"steps": 2})
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert frame["row"].tolist() == list(study.rows)
        learned = frame[~frame["row"].isin(["baseline", "plain training", "uniform weights"])]
        assert len(learned) == {ROTATION.name: 2, LABEL_NOISE.name: 5}[study.name]
        for column in study.columns:
            assert learned[column.header].notna().all(), column.header
        study.draw(frame, tmp_path / "figure.png")
    axes = drawn.axes("figure.png", tmp_path)
    expected = frame.set_index("row")[header].to_dict()
    assert any(bars(axis) == pytest.approx(expected) for axis in axes if axis.containers)
