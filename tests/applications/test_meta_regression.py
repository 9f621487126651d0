"""Many inner steps on the functions of A-MAML."""

import dataclasses

import pytest
import torch

from applications.regression_tasks.experiment import assemble, experiment
from applications.regression_tasks.settings import DEFAULT, NAMED
from applications.regression_tasks.study import ALPINE, COSINES
from metatoolkit import records
from metatoolkit.experiments.jobs import configuration_of, run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import Adjoint
from metatoolkit.inner import GradientFlow

LABELS = list(ALPINE.rows)
SMALL = {**DEFAULT, **NAMED["alpine"], "seed": 1, "inner_steps": 6, "tasks": 2}


def test_functions_network_and_steps_are_those_of_a_maml():
    trainer = assemble({**SMALL, "inner_steps": 200}).trainer
    assert isinstance(trainer.estimator, Adjoint) and trainer.estimator.horizon == 1
    assert isinstance(trainer.inner, GradientFlow) and trainer.inner.steps == 200
    assert trainer.inner.hyperparameters["time"] == pytest.approx(1.0)
    for family in ("alpine", "cosine_mixture"):
        assembly = assemble({**SMALL, **NAMED[family], "seed": 1})
        (inputs, targets), query = assembly.train_batches.task(0)
        assert inputs.shape == (100, 2) and targets.shape == query[1].shape == (100, 1)
        model = assembly.trainer.problem.model
        shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        assert shapes == [(32, 2), (32,), (32, 32), (32,), (1, 32), (1,)]
        assert any(isinstance(layer, torch.nn.Tanh) for layer in model.modules())
        # Both splits are in the units of the family, which are those of no single split.
        assert assembly.task("test").scale == assembly.train_batches.source.scale


def test_the_adjoint_moves_the_initial_values_as_maml_does():
    ends = []
    for algorithm in ("a-maml", "maml"):
        trainer = (assembly := assemble({**SMALL, "algorithm": algorithm})).trainer
        trainer.fit(assembly.train_batches, steps=2, progress=False)
        ends.append(torch.cat([p.flatten() for p in trainer.problem.meta.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


def test_query_and_support_errors_are_those_of_gradient_descent_by_hand():
    updates = {"algorithm": "scratch", "seed": 4, "test_tasks": 3, "inner_steps": 5, "lr": 0.05}
    run = experiment.run(named_configs=["alpine"], config_updates=updates)
    assembly = assemble(dict(run.config))
    errors = {"test": [], "support": []}
    for number in range(3):
        support, query = assembly.task("test").task(number)
        model = assemble(dict(run.config)).trainer.problem.model
        for _ in range(5):
            loss = (model(support[0]) - support[1]).square().mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient
        for name, (inputs, targets) in (("test", query), ("support", support)):
            errors[name].append(float((model(inputs) - targets).detach().square().mean().sqrt()))
    for name, found in errors.items():
        assert run.result[f"{name}_nrmse"] == pytest.approx(sum(found) / 3, rel=1e-4)
    assert run.result["test_nrmse"] != run.result["support_nrmse"]


@pytest.mark.parametrize(
    "labels", [LABELS[:2], pytest.param(LABELS, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_every_row_runs_and_is_drawn(tmp_path, labels):
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    rows = {
        label: dataclasses.replace(row, named=(*row.named, "smoke"))
        for label, row in ALPINE.rows.items()
        if label in labels
    }
    study = dataclasses.replace(ALPINE, rows=rows, seeds=(1,), claims=())
    jobs = jobs_of(study, updates={"progress": False})
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert frame["row"].tolist() == list(rows)
        assert frame[["query nRMSE", "support nRMSE"]].notna().all().all()
        study.draw(frame, tmp_path / "study.png")
    assert (tmp_path / "study.png").exists()
    families = {configuration_of(job)["family"] for job in jobs_of(COSINES, seeds=(1,))}
    assert families == {"cosine_mixture"}
