"""Weights of examples are learned by each method, and tell wrong labels."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from applications.data_reweighting.experiment import assemble, experiment, settings_of
from applications.data_reweighting.figures import detection, histograms
from applications.data_reweighting.settings import CONTROLS, DEFAULT, ESTIMATORS, NAMED
from applications.data_reweighting.study import COMPARISON
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import Implicit, Penalty, Reversible, Unrolled
from metatoolkit.inner import SGD, ReversibleMomentum
from tests.drawings import bars

QUIET = {"progress": False}
CONFIG = {**DEFAULT, "seed": 1}
KINDS = {
    "unrolled": (Unrolled, SGD, 50),
    "implicit": (Implicit, SGD, 20),
    "reversible": (Reversible, ReversibleMomentum, 50),
    "penalty": (Penalty, SGD, 20),
}


def _run(**updates):
    return experiment.run(named_configs=["smoke"], config_updates={**QUIET, **updates})


def test_each_method_is_its_estimator_with_a_learner_and_a_rhythm_of_its_own():
    assert set(KINDS) == set(ESTIMATORS)
    for method, (kind, inner, horizon) in KINDS.items():
        trainer = assemble({**CONFIG, "method": method}).trainer
        assert type(trainer.estimator) is kind and type(trainer.inner) is inner
        assert trainer.estimator.horizon == horizon
        through = kind in (Unrolled, Reversible)
        assert trainer.reset_every == (horizon if through else None)
        assert trainer.keep_lookahead
    for method in CONTROLS:
        assert assemble({**CONFIG, "method": method}).trainer.estimator is None
    own = settings_of({**CONFIG, "horizon": 7, "restart": False})
    assert own["horizon"] == 7 and own["restart"] is False


def test_the_last_training_is_that_of_the_inner_problem():
    """Gradient descent by hand gives the recorded accuracy of a control."""
    run = _run(method="clean_only", seed=3)
    assembly = assemble(dict(run.config))
    task, model = assembly.task, assembly.trainer.problem.model
    images, labels = (part[~task.is_corrupted] for part in task.train)
    assert torch.equal(labels, task.clean_labels[~task.is_corrupted])
    for _ in range(run.config["final_steps"]):
        loss = F.cross_entropy(model(images), labels)
        loss = loss + 0.01 / 2 * sum(p.square().sum() for p in model.parameters())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    share = (model(task.test.images).argmax(1) == task.test.labels).double().mean()
    assert run.result["test_accuracy"] == pytest.approx(float(share), abs=0.003)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_wrong_labels_lose_their_weight_in_a_few_moves(method):
    assembly = assemble({**CONFIG, "method": method, "horizon": 10, "meta_lr": 0.2})
    trainer, task = assembly.trainer, assembly.task
    trainer.fit(assembly.train_batches, assembly.valid_batches, steps=5, progress=False)
    found = detection(trainer.problem.meta.values(), task.is_corrupted, 0.5)
    assert 0.4 < float(task.is_corrupted.float().mean()) < 0.5
    assert found["precision"] > 0.7 and found["recall"] > 0.6
    assert found["weight_clean"] > 0.5 > found["weight_corrupted"]


def test_precision_recall_and_shares_are_those_of_the_counts():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.7, 0.96])
    corrupted = torch.tensor([True, True, False, True, False, False])
    found = detection(weights, corrupted, 0.5)
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["weight_clean"] == pytest.approx(1.96 / 3)
    assert found["weight_corrupted"] == pytest.approx(0.9 / 3)
    none = detection(weights, corrupted, 0.05)
    assert none["precision"] == none["recall"] == none["f1"] == 0.0
    assert set(detection(weights, corrupted & False, 0.5)) == {"weight_clean"}
    shares = histograms(weights, corrupted)
    assert sum(shares["clean"]) == pytest.approx(1) and len(shares["clean"]) == 20
    assert shares["corrupted"][2] == shares["clean"][19] == pytest.approx(1 / 3)


def test_any_estimator_is_chosen_by_its_name():
    updates = {"estimator": {"name": "FiniteDifference"}, "steps": 3, "batch_size": 100}
    run = _run(seed=5, **updates)
    assert run.config["method"] == "meta" and run.result["lambda_distance"] > 0
    with pytest.raises(ConfigurationError, match="method is 'plain', which takes no estimator"):
        _run(method="plain", **updates)
    with pytest.raises(UnknownNameError, match="Did you mean 'Unrolled'"):
        _run(estimator={"name": "Unroled"})
    with pytest.raises(ConfigurationError, match="but there are 1238 training examples"):
        _run(batch_size=2000)


def test_an_interrupted_run_resumes_bitwise(interrupt):
    whole = _run(seed=7).result
    interrupt(lambda: _run(seed=7), 3)
    assert _run(seed=7, resume=True).result == whole


@pytest.mark.parametrize(
    "labels",
    [("implicit", "one step", "plain training"), pytest.param((), marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_every_row_of_the_study_runs_and_is_drawn(tmp_path, drawn, labels):
    # The row of one step has a horizon of its own.
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
        assert frame["row"].tolist() == list(rows)
        study.draw(frame, tmp_path / "study.png")
        runs = dict(zip(frame["row"], frame["run"], strict=True))
        learned = [label for label, run in runs.items() if run.config["method"] not in CONTROLS]
        scores = {"precision", "recall", "f1", "weight_clean", "weight_corrupted"}
        for label, run in runs.items():
            assert (scores <= set(run.result)) == (label in learned)
            assert ("peak_memory_bytes" in run.info) == (label in learned)
            assert ("weights.png" in run.artifacts) == (label in learned)
        assert all(runs[label].result["lambda_distance"] > 0 for label in learned)
        # Four moves, every second of which is evaluated.
        assert runs["implicit"].metrics["f1"].index.tolist() == [2, 4]
        assert runs["implicit"].metrics["f1"].iloc[-1] == runs["implicit"].result["f1"]
    panels = {axis.get_title(): axis for axis in drawn.axes("study.png", tmp_path)}
    assert [title for title in panels if title] == learned
    for panel in (panels[label] for label in learned):
        assert sum(bar.get_height() for bar in panel.patches) == pytest.approx(200)
    expected = frame.set_index("row")["test accuracy [%]"].to_dict()
    assert bars(drawn.axes("study.png")[-1]) == pytest.approx(expected)
    assert len(COMPARISON.seeds) >= 10


def test_named_configurations_settle():
    for chosen in NAMED.values():
        settings_of({**CONFIG, **chosen})
