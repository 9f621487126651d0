"""A problem whose later evaluations hold what the first ones detached."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.held_problem import HeldProblem
from metatoolkit.testing import bank


def train_loss(model, meta, batch):
    return meta.value * model.value + (batch * model.value.square() * meta.value).detach()


def valid_loss(model, meta, batch):
    return meta.value * model.value * 10 + (model.value * meta.value).detach()


def held_problem(holds=True, last=False):
    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), train_loss, valid_loss)
    return HeldProblem(problem, holds, last)


def point(value):
    return {"value": torch.tensor(value, dtype=torch.float64)}


def trained(problem, theta, meta, batch=1.0):
    return float(problem.evaluate_train(point(theta), point(meta), {}, batch, 0)[0].detach())


def validated(problem, theta, meta):
    return float(problem.evaluate_valid(point(theta), point(meta), {}, None, 0).detach())


def test_later_series_are_given_what_the_first_held_in_order():
    problem = held_problem()
    problem.begin(recording=True)
    # θλ + bθ²λ
    assert [trained(problem, 2.0, 3.0), trained(problem, 3.0, 3.0, 2.0)] == [18.0, 63.0]
    assert [validated(problem, 2.0, 3.0), validated(problem, 5.0, 3.0)] == [66.0, 165.0]
    for _ in range(2):
        problem.begin(recording=False)
        # Of the two λs it is the one of the first series in what is detached.
        assert trained(problem, 2.0, 4.0) == 8.0 + 12.0
        assert validated(problem, 2.0, 4.0) == 80.0 + 6.0
        assert trained(problem, 3.0, 4.0, 2.0) == 12.0 + 54.0
        assert trained(problem, 5.0, 4.0, 9.0) == 20.0 + 54.0
        assert validated(problem, 2.0, 4.0) == 80.0 + 15.0
        assert validated(problem, 2.0, 4.0) == 80.0 + 15.0


def test_each_of_three_evaluations_is_given_its_own():
    problem = held_problem()
    problem.begin(recording=True)
    for theta in (1.0, 2.0, 3.0):
        trained(problem, theta, 1.0)
    problem.begin(recording=False)
    # θλ + θ₀²
    assert [trained(problem, 5.0, 1.0) for _ in range(3)] == [6.0, 9.0, 14.0]


def test_a_new_series_that_is_recorded_forgets_the_old_one():
    problem = held_problem()
    for meta in (3.0, 5.0):
        problem.begin(recording=True)
        assert trained(problem, 2.0, meta) == 6.0 * meta
    problem.begin(recording=False)
    assert trained(problem, 2.0, 1.0) == 2.0 + 20.0


def test_the_last_evaluation_is_what_all_later_ones_are_given():
    problem = held_problem(last=True)
    problem.begin(recording=True)
    trained(problem, 2.0, 3.0)
    trained(problem, 3.0, 3.0)
    problem.begin(recording=False)
    assert [trained(problem, 2.0, 4.0), trained(problem, 2.0, 4.0)] == [35.0, 35.0]


def test_nothing_is_held_for_what_differentiates_nothing():
    problem = held_problem(holds=False)
    problem.begin(recording=True)
    assert trained(problem, 2.0, 3.0) == 18.0 and validated(problem, 2.0, 3.0) == 66.0
    problem.begin(recording=False)
    assert trained(problem, 2.0, 4.0) == 24.0 and validated(problem, 2.0, 4.0) == 88.0


@pytest.mark.parametrize("holds", [True, False])
def test_buffers_of_a_step_are_held(holds):
    case = bank.small_net()
    problem = HeldProblem(case.problem, holds, False)
    state, meta = case.state, case.problem.meta_parameters()

    def mean(scale):
        parameters = {name: scale * tensor for name, tensor in state.parameters.items()}
        after = problem.evaluate_train(parameters, meta, state.buffers, case.train_batches[0], 0)[1]
        return after["model.1.running_mean"]

    problem.begin(recording=True)
    first = mean(1.0)
    problem.begin(recording=False)
    assert torch.equal(mean(2.0), first) == holds


@pytest.mark.parametrize("graph", [True, False])
def test_losses_run_with_gradients_and_return_them_where_they_are_recorded(graph):
    seen = []

    def loss(model, meta, batch):
        seen.append((torch.is_grad_enabled(), model.value.requires_grad, meta.value.requires_grad))
        return model.value * meta.value

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), loss, loss)
    held = HeldProblem(problem, True, False)
    held.begin(recording=True)
    with torch.set_grad_enabled(graph):
        value, _ = held.evaluate_train(point(2.0), point(3.0), {}, None, 0)
        outer = held.evaluate_valid(point(2.0), point(3.0), {}, None, 0)
    assert value.requires_grad == outer.requires_grad == graph
    # A loss that asks for requires_grad has its first pass once more.
    assert len(seen) >= 2 and set(seen) == {(True, True, True)}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("requires", [True, False])
def test_functions_of_meta_parameters_are_held(requires, graph):
    problem = held_problem()
    seen = []

    def rate(meta):
        seen.append((torch.is_grad_enabled(), meta.value.requires_grad))
        return {"lr": meta.value * 2 + meta.value.detach() * 100}

    def rates(value):
        meta = {"value": torch.tensor(value, dtype=torch.float64, requires_grad=requires)}
        with torch.set_grad_enabled(graph):
            return problem.evaluate_meta(rate, meta)["lr"], meta["value"]

    problem.begin(recording=True)
    first, leaf = rates(3.0)
    assert float(first.detach()) == 306.0 and first.requires_grad == (graph and requires)
    if first.requires_grad:
        assert float(torch.autograd.grad(first, leaf)[0]) == 2.0
    problem.begin(recording=False)
    assert float(rates(4.0)[0].detach()) == 308.0
    assert seen == [(True, True)] * 2
