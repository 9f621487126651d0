"""A few images are learned, on which fresh networks are trained."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from applications.dataset_distillation.experiment import accuracies, assemble, experiment
from applications.dataset_distillation.settings import DEFAULT, NAMED
from applications.dataset_distillation.study import COMPARISON
from metatoolkit import records
from metatoolkit.errors import DataError
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import Reversible, Unrolled
from metatoolkit.inner import SGD, ReversibleMomentum
from tests.drawings import bars

CONFIG = {**DEFAULT, "seed": 1}
SMALL = {**CONFIG, **NAMED["smoke"], "network": {**DEFAULT["network"], "hidden": [8]}}


def _run(**updates):
    return experiment.run(
        named_configs=["smoke"], config_updates={"progress": False, "seed": 3, **updates}
    )


def test_the_images_are_the_meta_parameters_and_networks_are_random():
    for method, kind, inner in (
        ("unrolled", Unrolled, SGD),
        ("reversible", Reversible, ReversibleMomentum),
    ):
        assembly = assemble({**CONFIG, "method": method, "per_class": 2})
        trainer = assembly.trainer
        assert type(trainer.estimator) is kind and type(trainer.inner) is inner
        assert trainer.estimator.horizon == trainer.reset_every == 20
        meta = trainer.problem.meta
        assert trainer.problem.meta_parameter_names == ["inputs"]
        assert meta.inputs.shape == (20, 1, 8, 8) and meta.labels.tolist()[:3] == [0, 0, 1]
        assert trainer.redraw().layers[0].weight.shape == (32, 64)
    assert assemble({**CONFIG, "random_starts": False}).trainer.redraw is None


def test_the_controls_take_images_of_the_data_set():
    real = assemble({**CONFIG, "method": "real", "per_class": 2}).trainer.problem.meta
    assert real.labels.bincount().tolist() == [2] * 10
    means = assemble({**CONFIG, "method": "means"}).trainer.problem.meta
    batches = assemble(CONFIG).valid_batches
    images, labels = batches.tensors
    assert len(labels) == 1438 - 200
    for label in (0, 7):
        torch.testing.assert_close(means.inputs[label], images[labels == label].mean(0))
        own = real.inputs[real.labels == label]
        assert all((images[labels == label] == one).all((1, 2, 3)).any() for one in own)
    halves = assemble({**CONFIG, "method": "means", "per_class": 2}).trainer.problem.meta
    sizes = torch.tensor([len(part) for part in images[labels == 7].tensor_split(2)])
    mean = (sizes.view(2, 1, 1, 1) * halves.inputs[14:16]).sum(0) / sizes.sum()
    torch.testing.assert_close(mean, means.inputs[7])
    for method in ("real", "means"):
        with pytest.raises(DataError, match="lower"):
            assemble({**CONFIG, "method": method, "per_class": 200})


def test_fresh_networks_are_trained_on_the_images_alone():
    """Gradient descent by hand gives the same accuracies, on test and on tuning images."""
    assembly = assemble({**SMALL, "method": "means", "test_networks": 1, "test_steps": 4})
    images, labels = (tensor.detach() for tensor in assembly.trainer.problem.meta())
    models = []
    build = assembly.task["build"]
    assembly.task["build"] = lambda: models.append(build()) or models[-1]
    first = {}
    fit = type(assembly.trainer).fit

    def noted(trainer, *arguments, **options):
        first.update({n: p.detach().clone() for n, p in models[-1].named_parameters()})
        return fit(trainer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(assembly.trainer), "fit", noted)
        found = accuracies({**SMALL, "test_networks": 1, "test_steps": 4}, assembly)
    model = build()
    model.load_state_dict(first)
    for _ in range(4):
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 1.0 * gradient
    for name in ("test", "tuning"):
        split = assembly.task[name]
        share = float((model(split.images).argmax(1) == split.labels).double().mean())
        assert found[f"{name}_accuracy"] == pytest.approx(share, abs=0.006)
    assert len(assembly.task["tuning"].labels) == 200


def test_images_are_learned_in_a_few_moves():
    config = {**CONFIG, "horizon": 10, "meta_lr": 0.1, "test_networks": 2}
    assembly = assemble(config)
    before = accuracies(config, assembly)["tuning_accuracy"]
    trainer = assembly.trainer
    trainer.fit(assembly.train_batches, assembly.valid_batches, steps=15, progress=False)
    assert before < 0.5 < 0.6 < accuracies(config, assembly)["tuning_accuracy"]


def test_an_interrupted_run_resumes_bitwise_and_any_estimator_is_chosen(interrupt):
    whole = _run().result
    interrupt(_run, 3)
    assert _run(resume=True).result == whole
    one = _run(estimator={"name": "OneStep"}, steps=4)
    assert one.config["method"] == "meta" and one.result["lambda_distance"] > 0


@pytest.mark.parametrize(
    "labels",
    [("distilled, 1 a class", "real, 1 a class"), pytest.param((), marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_every_row_of_the_study_runs_and_is_drawn(tmp_path, drawn, labels):
    rows = {
        label: dataclasses.replace(
            row,
            named=("smoke",),
            updates={n: v for n, v in row.updates.items() if n != "test_steps"},
        )
        for label, row in COMPARISON.rows.items()
        if "100" not in label and (label in labels or not labels)
    }
    claims = [claim for claim in COMPARISON.claims if {claim.row, claim.over} <= set(rows)]
    study = dataclasses.replace(COMPARISON, rows=rows, seeds=(1,), claims=claims)
    jobs = jobs_of(study)
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert frame["row"].tolist() == list(rows)
        study.draw(frame, tmp_path / "study.png")
        run = frame["run"].iloc[0]
        assert {"images.png", "curves.png"} <= set(run.artifacts)
        assert "tuning_accuracy" in run.metrics and "test_accuracy" not in run.metrics
        shown = run.info["images"]
    axes = drawn.axes("study.png", tmp_path)
    expected = frame.set_index("row")["test accuracy [%]"].to_dict()
    assert bars(axes[-1]) == pytest.approx(expected)
    pictures = [axis.images[0].get_array() for axis in axes if axis.images]
    assert len(pictures) == 10 * sum(run.config["per_class"] for run in frame["run"])
    assert pictures[0].tolist() == shown[0]
    assert len(COMPARISON.seeds) >= 10
