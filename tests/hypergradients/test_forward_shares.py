"""Forward mode through shares of a schedule: what has not begun costs nothing, and is exact."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.inner import SGD
from metatoolkit.metaparameters import LearningRates, Schedule
from metatoolkit.testing import bank
from metatoolkit.testing.bank import Value
from tests.hypergradients.test_unrolled import Plain, error, flat

FIRST = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}


def of(name):
    return lambda meta, step: meta[name].at(step)


def scheduled(horizon, shares, width=8, layers=2, weighted=False, dtype=torch.float64):
    """A plain network whose settings of SGD are schedules, and λ in the loss where it is asked."""
    setup = Plain(width, layers)
    meta = nn.ModuleDict(
        {name: Schedule(FIRST[name], horizon, count) for name, count in shares.items()}
    )
    if weighted:
        meta["weights"] = Value([0.5, -0.2], dtype)

    def loss(model, meta, batch):
        return (model(batch) - batch).tanh().square().mean()

    def train_loss(model, meta, batch):
        if not weighted:
            return loss(model, meta, batch)
        first, second = meta["weights"].value.exp()
        return first * loss(model, meta, batch[:8]) + second * loss(model, meta, batch[8:])

    setup.problem = mt.BilevelProblem(
        setup.problem.model.to(dtype), meta.to(dtype), train_loss, loss
    )
    setup.inner = SGD(**{name: of(name) for name in shares})
    setup.state = setup.inner.init(setup.problem)
    setup.batch = setup.batch.to(dtype)
    return setup


def test_equals_reverse_mode_over_many_steps():
    setup = scheduled(200, {"lr": 4, "momentum": 2, "weight_decay": 2})
    forward, reverse = (setup.call(estimator(200)) for estimator in (ForwardMode, Unrolled))
    assert error(flat(forward), flat(reverse)) < 1e-10
    for one, other in zip(forward.state.tensors(), reverse.state.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_reverse_mode_whatever_is_left_out(weighted):
    # Twelve shares of which five begin, and so no column of the others has a derivative.
    setup = scheduled(12, {"lr": 12, "momentum": 4}, weighted=weighted)
    exact = setup.call(Unrolled(5)).gradient
    assert exact["lr.raw"][5:].tolist() == [0.0] * 7
    for chunk in (1, 2, 5, 64):
        found = setup.call(ForwardMode(5, chunk=chunk)).gradient
        for name, gradient in exact.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-14)


def test_each_step_costs_what_has_begun():
    shares = {"lr": 3, "momentum": 1, "weight_decay": 1}
    setup = scheduled(12, shares, 64, 6, dtype=torch.float32)
    # A column is differentiated from the step after its first effect on: shares of the rate begin
    # at steps 0, 4 and 8, the decay at 0, the momentum at 1, where there is a velocity.
    begun = [sum(step > first for first in (0, 4, 8, 0, 1)) for step in range(12)]
    assert setup.call(ForwardMode(12)).cost.jvp == sum(begun) == 42
    one = count_flops(setup.forward)
    costs = [count_flops(lambda n=n: setup.call(ForwardMode(n))) / one for n in range(1, 11)]
    for step in (1, 4, 5, 9):
        taken = costs[step] - costs[step - 1]
        assert 3 * 0.8 + 5 * begun[step] < taken <= 3 + 6 * begun[step]


def test_rates_of_later_steps_cost_nothing():
    case = bank.small_net()
    meta = LearningRates(case.problem.model, 0.1, "layer", steps=3)
    count = len(list(meta.parameters()))
    loss = case.problem.valid_loss
    problem = mt.BilevelProblem(case.problem.model, meta, loss, loss)
    inner = SGD(lr=LearningRates.at)
    found = ForwardMode(3)(
        problem, inner, inner.init(problem), [case.valid_batch] * 3, case.valid_batch
    )
    assert found.cost.jvp == count * (2 + 1)


def test_what_the_loss_reads_costs_from_the_first_step_on():
    setup = scheduled(6, {"lr": 3}, weighted=True)
    # Shares that begin at steps 0, 2 and 4, and two weights.
    assert setup.call(ForwardMode(6)).cost.jvp == 5 + 3 + 1 + 2 * 6


@pytest.mark.parametrize("truncation", [1, 4, 10])
def test_truncated_it_is_reverse_mode_truncated(truncation):
    setup = scheduled(10, {"lr": 5, "momentum": 1}, weighted=True)
    forward, reverse = (
        setup.call(estimator(10, truncation=truncation)) for estimator in (ForwardMode, Unrolled)
    )
    assert error(flat(forward), flat(reverse)) < 1e-11
    assert forward.state.step == 10
    torch.testing.assert_close(forward.valid_loss, reverse.valid_loss, rtol=1e-12, atol=0)
    # The shares before the last steps have no derivative.
    unseen = 5 * (10 - truncation) // 10
    assert forward.gradient["lr.raw"][:unseen].tolist() == [0.0] * unseen
    assert ForwardMode(10, truncation=truncation).traits.kind == (
        "exact" if truncation == 10 else "approximate"
    )


def test_truncated_it_is_the_derivative_of_its_objective():
    case = bank.ridge()
    arguments = (case.problem, case.inner, ForwardMode(5, truncation=2), case.batches(5))
    check = mt.check_hypergradient(*arguments, case.valid_batch)
    assert check.relative_error < 1e-6


@pytest.mark.parametrize("truncation", [0, 6])
def test_a_truncation_beyond_the_steps_is_an_error(truncation):
    with pytest.raises(ConfigurationError, match=f"truncation is {truncation} with steps=5"):
        ForwardMode(5, truncation=truncation)


def test_memory_does_not_grow_with_the_horizon():
    def peak(horizon):
        setup = scheduled(horizon, {"lr": 2}, 4, 1, dtype=torch.float32)
        return peak_memory(lambda: setup.call(ForwardMode(horizon)))

    assert peak(1000) <= 1.05 * peak(100)
