"""Passes of losses as pure functions, alone, nested and under the transforms of torch.func."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import metatoolkit as mt
from metatoolkit import passes
from metatoolkit.hypergradients import EvolutionStrategies, Unrolled
from metatoolkit.in_place import Untouched
from tests import bank


def noisy_case(seen=None):
    def train_loss(model, meta, batch):
        if seen is not None:
            seen.append(isinstance(_get_current_dispatch_mode(), Untouched))
        return (model.value * batch - meta.value).square().mean()

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), train_loss, train_loss)
    batch = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return bank.Case(problem, mt.inner.SGD(lr=0.1), [batch], batch)


def test_only_the_first_pass_of_a_loss_is_watched_over():
    seen = []
    case = noisy_case(seen)
    state = case.state
    for _ in range(3):
        case.inner.step(case.problem, state, case.problem.meta_parameters(), case.valid_batch)
    assert seen == [True, False, False]


def test_graphs_are_looked_at_once_in_a_call(monkeypatch):
    counts = {"graph": 0, "second": 0}

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    inspect, watch = passes.inspect_graph, passes.watch_second_derivatives
    monkeypatch.setattr(passes, "inspect_graph", counted("graph", inspect))
    monkeypatch.setattr(passes, "watch_second_derivatives", counted("second", watch))
    case = noisy_case()
    case.call(Unrolled(5))
    assert counts == {"graph": 2, "second": 1}  # one of each loss, and one of the training loss
    case.call(Unrolled(5))
    assert counts == {"graph": 4, "second": 2}


@pytest.mark.parametrize("warm", [False, True])
def test_a_loss_that_differentiates_inside_itself_needs_no_graph_around(warm):
    def penalized(model, meta, batch):
        output = (model.value * batch).sin().sum()
        (slope,) = torch.autograd.grad(output, model.value, create_graph=True)
        return output + meta.value * slope.square()

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), penalized, penalized)
    batch = torch.tensor(1.3, dtype=torch.float64)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, batch, 0)
    x = torch.tensor(0.7 * 1.3, dtype=torch.float64)
    right = x.sin() + 0.2 * (1.3 * x.cos()).square()
    with torch.no_grad():
        for _ in range(2 if warm else 1):
            value = problem.evaluate_valid(*arguments)
            assert not value.requires_grad
            torch.testing.assert_close(value, right)


@pytest.mark.parametrize("warm", [False, True])
def test_passes_can_be_transformed(warm):
    case = noisy_case()
    problem, batch = case.problem, case.valid_batch
    meta = {"value": torch.tensor(0.2, dtype=torch.float64)}
    if warm:
        problem.evaluate_train(problem.parameters(), meta, {}, batch, 0)

    def loss(value):
        return problem.evaluate_train({"value": value}, meta, {}, batch, 0)[0]

    values = torch.tensor([0.1, 0.7, -2.0], dtype=torch.float64)
    right = (values[:, None] * batch - 0.2).square().mean(1)
    torch.testing.assert_close(torch.func.vmap(loss)(values), right)
    slopes = torch.func.vmap(torch.func.grad(loss))(values)
    torch.testing.assert_close(slopes, (2 * batch * (values[:, None] * batch - 0.2)).mean(1))


def test_hooks_on_frozen_parameters_are_nobodys_business():
    model = nn.Linear(2, 1).double()
    model.bias.register_hook(lambda gradient: gradient)
    model.bias.requires_grad_(False)

    def train_loss(model, meta, batch):
        return model(batch).square().mean() * meta.value

    problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, train_loss)
    batch = torch.ones(3, 2, dtype=torch.float64)
    case = bank.Case(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    assert case.call(Unrolled(1)).gradient["value"].isfinite()
    case.call(EvolutionStrategies())
