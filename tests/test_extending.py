"""Components of docs/extending, each one file outside the package, checked and used end to end."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import Implicit, Unrolled, estimators
from metatoolkit.hypergradients.linear_solvers import solvers
from metatoolkit.inner import learners
from metatoolkit.losses import cross_entropy
from metatoolkit.metaparameters import modules
from metatoolkit.testing import bank, check_estimator, check_inner_learner, check_solver
from tests.registries import set_apart

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "extending"
FILES = sorted(FOLDER.glob("*.py"))
LIMIT = 40


@pytest.fixture
def load(monkeypatch):
    """Import a file as a stranger's module; what it registers is forgotten afterwards."""
    set_apart(monkeypatch)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"stranger_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def train(problem, inner, estimator, batches, steps=6):
    """Train λ, and return how far it moved."""
    before = [parameter.detach().clone() for parameter in problem.meta.parameters()]
    optimizer = torch.optim.Adam(problem.meta.parameters(), lr=0.1)
    trainer = mt.MetaTrainer(problem, inner, estimator, optimizer)
    trainer.fit(batches[:-1], [batches[-1]], steps, progress=False)
    pairs = zip(before, problem.meta.parameters(), strict=True)
    return max(float((one - two.detach()).abs().max()) for one, two in pairs)


def test_there_is_a_file_for_each_kind_of_component():
    names = [path.stem for path in FILES]
    assert names == ["estimator", "inner_learner", "metaparameters", "solver"]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_component_takes_fewer_lines_than_forty(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < LIMIT


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_page_shows_each_file_as_it_is(path):
    page = (FOLDER.parent / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert path.read_text() in blocks
    assert f"extending/{path.name}" in page


def test_an_estimator(load):
    load("estimator")
    estimator = estimators.build("LastStep", steps=2)
    report = check_estimator(estimator)
    assert len(report.passed) > 60
    assert set(report.skipped.values()) == {
        "unsupported: λ is in the optimizer or the initial state alone",
        "each call by itself is right",
    }
    # One step is the whole trajectory: the derivative is exact.
    ridge = bank.ridge()
    found = ridge.call(estimators.build("LastStep", steps=1)).gradient["value"]
    torch.testing.assert_close(found, ridge.call(Unrolled(1)).gradient["value"])
    table = mt.compare_estimators(
        ridge.problem, ridge.inner, ["LastStep", "OneStep"], ridge.batches(3), ridge.valid_batch,
        show=False, progress=False, repeats=1,
    ).rows  # fmt: skip
    assert 0 < table["LastStep"]["cosine"] <= 1
    case = bank.small_net()
    batches = [*case.train_batches, case.valid_batch]
    assert train(case.problem, case.inner, estimator, batches) > 0.01


def test_an_inner_learner(load):
    load("inner_learner")
    learner = learners.build("Tamed", lr=0.05, momentum=0.8)
    report = check_inner_learner(learner)
    assert set(report.skipped) == {
        "a_step_that_is_said_to_be_linear_in_the_gradient_is",
        "the_sensitivity_that_is_told_is_the_derivative_of_the_update",
    }
    # Of a linear function with slope b λ = 0.8: the momentum is 0.8, 1.44, ...
    case = bank.started(learner)
    state = case.state
    moves = []
    for _ in range(2):
        after, _ = learner.step(case.problem, state, case.problem.meta_parameters(), 1.0)
        moves.append(float(state.parameters["value"] - after.parameters["value"]))
        state = after
    assert moves == pytest.approx([0.05 * 0.8 / 1.8, 0.05 * 1.44 / 2.44])
    case = bank.small_net()
    batches = [*case.train_batches, case.valid_batch]
    assert train(case.problem, learner, Unrolled(2), batches) > 0.01


def test_a_solver(load):
    load("solver")
    report = check_solver(solvers.build("MinimalResidual", iterations=2000, tolerance=1e-9))
    assert not report.skipped
    estimator = estimators.build("Implicit", solver={"name": "MinimalResidual"}, steps=5)
    assert type(estimator) is Implicit and estimator.solver.iterations == 500
    case = bank.ridge()
    batches = [*case.train_batches, case.valid_batch]
    assert train(case.problem, mt.inner.SGD(0.05), estimator, batches) > 0.1


def test_a_meta_parameter_module(load):
    loss = load("metaparameters").decayed_cross_entropy
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    meta = modules.build("Decays", tensors=6)
    case = bank.small_net()
    batches = [
        (inputs.float(), labels) for inputs, labels in (*case.train_batches, case.valid_batch)
    ]
    problem = mt.BilevelProblem(model, meta, loss, cross_entropy)
    inner = mt.inner.SGD(lr=0.2, momentum=0.9)
    check = mt.check_hypergradient(problem, inner, Unrolled(3), batches[:3], batches[3])
    assert check.verdict == "agrees" and float(check.estimate.abs().min()) > 0
    assert train(problem, inner, Unrolled(1), batches) > 0.1
