"""Implicit over tasks side by side: each task's own system, solved as it is by itself."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    Implicit,
    Neumann,
    NormalEquationCG,
)
from metatoolkit.training.task_run import TaskRun
from tests.training.across_tasks import largest_difference, squared_error

SGD = mt.inner.SGD(lr=0.2)
MOMENTUM = mt.inner.SGD(lr=0.2, momentum=0.5)
CASES = {
    "FixedPoint": (FixedPoint(20), SGD, {}),
    "FixedPoint, momentum": (FixedPoint(20), MOMENTUM, {}),
    "ConjugateGradient": (ConjugateGradient(6), SGD, {}),
    "ConjugateGradient, damped": (ConjugateGradient(6, 1e-3, damping=0.1), SGD, {}),
    "MINRES, momentum": (MINRES(6), MOMENTUM, {"through": "parameters"}),
    "NormalEquationCG": (NormalEquationCG(6), SGD, {}),
    "GMRES, momentum": (GMRES(8), MOMENTUM, {}),
    "Neumann": (Neumann(30), SGD, {}),
}


class Slopes(torch.nn.Module):
    """A model that is linear in θ, so that its inner problem has one minimum."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1).double()

    def forward(self, inputs):
        return self.linear(inputs.sin())


class Decay(torch.nn.Module):
    """λ as the logarithms of a weight decay, and the network's steepness."""

    def __init__(self):
        super().__init__()
        self.logarithm = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))


def ridge(model, meta, batch):
    decay = sum(parameter.square().sum() for parameter in model.parameters())
    return squared_error(model, meta, batch) + meta.logarithm.exp() * decay


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return mt.BilevelProblem(Slopes(), Decay(), ridge, squared_error)


def tasks(count=4):
    generator = torch.Generator().manual_seed(1)
    inputs = 3 * torch.randn(count, 9, 3, generator=generator, dtype=torch.float64)
    # Of sizes apart, so that a norm over all tasks would end their iterations alike.
    sizes = 10.0 ** torch.arange(count).view(count, 1, 1)
    targets = sizes * torch.randn(count, 9, 1, generator=generator, dtype=torch.float64)
    return (inputs[:, :5], targets[:, :5]), (inputs[:, 5:], targets[:, 5:])


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_the_loop(problem, name, chunk):
    solver, inner, options = CASES[name]
    estimator = Implicit(solver, steps=3, **options)
    loop = mt.over_tasks(problem, inner, estimator, tasks(), "loop")
    batching = mt.TaskBatching("vmap", chunk=chunk)
    found = mt.over_tasks(problem, inner, estimator, tasks(), batching)
    assert found.details["batching"] == "vmap"
    scale = float(loop.gradient["logarithm"].abs())
    assert largest_difference(found.gradient, loop.gradient) < 1e-12 * scale
    assert torch.allclose(found.details["task_losses"], loop.details["task_losses"], rtol=1e-12)
    # Of the residuals, the largest is told; below the rounding of b it tells nothing.
    for kind in ("forward", "backward", "jvp", "hvp", "iterations"):
        assert getattr(found.cost, kind) == getattr(loop.cost, kind)
    assert found.cost.residual == pytest.approx(loop.cost.residual, rel=1e-6, abs=1e-13)


def test_it_is_the_mean_of_the_derivatives_in_closed_form(problem):
    estimator = Implicit(ConjugateGradient(8, 1e-14), steps=100)
    found = mt.over_tasks(problem, mt.inner.SGD(lr=0.15), estimator, tasks(3), "vmap")
    decay = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    losses = []
    for inputs, targets, queries, answers in zip(
        *(p for pair in tasks(3) for p in pair), strict=True
    ):
        rows, more = (
            torch.cat([x.sin(), torch.ones(len(x), 1).double()], 1) for x in (inputs, queries)
        )
        ridge = decay.exp() * torch.eye(4, dtype=torch.float64)
        best = torch.linalg.solve(rows.T @ rows / len(rows) + ridge, rows.T @ targets / len(rows))
        losses.append((more @ best - answers).square().mean())
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), decay)
    assert float(found.gradient["logarithm"]) == pytest.approx(float(expected), rel=1e-9)


def test_what_fails_for_a_task_names_it(problem, monkeypatch):
    monkeypatch.setattr(TaskRun, "_difference", lambda *_: None)
    batch = tasks()
    problem.train_loss = lambda model, meta, batch: batch[1].mean() * ridge(model, meta, batch)
    for number, targets in enumerate(batch[0][1]):
        targets.fill_(-1.0 if number == 3 else 1.0)
    estimator = Implicit(ConjugateGradient(5))
    with pytest.raises(UnsupportedError, match="direction of curvature") as caught:
        mt.over_tasks(problem, SGD, estimator, batch, "vmap")
    assert "in task 3 of the batch" in caught.value.__notes__


def test_a_slot_that_is_common_to_tasks_is_refused(problem):
    estimator, learner = Implicit(GMRES(3), steps=2), mt.inner.NAdam(lr=0.01)
    with pytest.raises(UnsupportedError, match="common to all tasks"):
        mt.over_tasks(problem, learner, estimator, tasks(), "vmap")
