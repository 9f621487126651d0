"""The parts of a step by finite differences, by themselves."""

import dataclasses

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import SAMA, FiniteDifference, OneStep
from metatoolkit.hypergradients import adapted_difference as parts
from metatoolkit.hypergradients.difference_radius import rounding_unit
from metatoolkit.testing import bank


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def test_dead_coordinates_that_are_amplified_most_are_left_out():
    outer = {"a": tensor([1.0, 2.0, -1.0, 0.0, 4.0]), "b": tensor(2.0)}
    gradients = {"a": tensor([0.5, 0.0, 0.0, 0.0, -1.0]), "b": tensor(3.0)}
    # Gains: 10, 2e5, 30, none, 20; and 5.
    products = {"a": tensor([-10.0, 4e5, -30.0, 0.0, -80.0]), "b": tensor(10.0)}
    found = parts._direction(products, gradients, outer)
    assert found["a"].tolist() == [-10.0, 0.0, -30.0, 0.0, -80.0]
    assert found["b"].item() == 10.0


@pytest.mark.parametrize(("gain", "left"), [(0.99e4, True), (1.01e4, False)])
def test_amplified_a_thousand_times_the_usual(gain, left):
    # The geometric mean of 5 and 20 is 10.
    outer = {"a": tensor([2.0, -1.0, 3.0]), "b": torch.zeros(0)}
    gradients = {"a": tensor([1.0, 1.0, 0.0]), "b": torch.zeros(0)}
    products = {"a": tensor([10.0, 20.0, 3.0 * gain]), "b": torch.zeros(0)}
    found = parts._direction(products, gradients, outer)
    assert found["a"].tolist() == [10.0, 20.0, 3.0 * gain if left else 0.0]
    assert found["b"].numel() == 0


def test_no_more_than_the_living_is_no_reason():
    # The living have gains of 1 and 1e9, and a dead one no more than that.
    outer, gradients = {"a": tensor([1.0, 1.0, 1.0])}, {"a": tensor([1.0, 1.0, 0.0])}
    products = {"a": tensor([1.0, 1e9, 9e8])}
    assert parts._direction(products, gradients, outer)["a"].tolist() == [1.0, 1e9, 9e8]


def test_where_nothing_lives_nothing_is_left_out():
    outer, gradients = {"a": tensor([1.0, 1.0])}, {"a": tensor([0.0, 0.0])}
    products = {"a": tensor([1.0, 1e9])}
    assert parts._direction(products, gradients, outer)["a"].tolist() == [1.0, 1e9]
    assert parts._direction({}, {}, {}) == {}


def test_an_update_that_mixes_coordinates_keeps_those_without_an_outer_gradient():
    outer, gradients = {"a": tensor([1.0, 0.0])}, {"a": tensor([1.0, 0.0])}
    products = {"a": tensor([0.5, 7.0])}
    assert parts._direction(products, gradients, outer)["a"].tolist() == [0.5, 7.0]


@pytest.mark.parametrize(
    ("parameter", "meta", "unit"),
    [
        (torch.float64, torch.float64, 2.0**-52),
        (torch.float32, torch.float64, 2.0**-23),
        (torch.float64, torch.bfloat16, 2.0**-7),
    ],
)
def test_the_rounding_unit_is_the_largest(parameter, meta, unit):
    parameters = {"a": tensor(1.0), "b": tensor(1.0, parameter)}
    assert rounding_unit(parameters, {"c": tensor(1.0, meta)}) == unit


@pytest.mark.parametrize(
    ("estimator", "limit"),
    [(FiniteDifference(), OneStep()), (SAMA(), OneStep(False))],
    ids=["FiniteDifference", "SAMA"],
)
def test_the_objective_is_that_of_one_step(estimator, limit):
    case = bank.small_net()
    meta = {n: p.detach() + 0.1 for n, p in case.problem.meta_parameters().items()}
    values = [
        float(e.objective(case.problem, case.inner, case.state, case.batches(1), valid, meta))
        for e in (estimator, limit)
        for valid in (case.valid_batch, case.train_batches[0])
    ]
    assert values[:2] == values[2:] and values[0] != values[1]


@pytest.mark.parametrize("name", ["step", "gradients"])
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_a_step_of_its_own_is_refused(name, kind):
    case = bank.small_net()
    method = getattr(mt.inner.SGD, name)
    if kind == "class":
        inner = type("Own", (mt.inner.SGD,), {name: lambda self, *a: method(self, *a)})(lr=0.1)
    else:
        inner = mt.inner.SGD(lr=0.1)
        setattr(inner, name, getattr(inner, name))
    case = dataclasses.replace(case, inner=inner)
    with pytest.raises(UnsupportedError, match=f"has a `{name}` of its own"):
        case.call(FiniteDifference())


def test_the_state_is_that_of_an_ordinary_step():
    case = bank.small_net()
    state = case.state
    found, expected = case.call(FiniteDifference(), state).state, case.call(OneStep(), state).state
    assert found.step == expected.step == 1
    for one, other in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, other)
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(found.buffers[name], buffer)
    assert not torch.equal(
        found.buffers["model.1.running_mean"], state.buffers["model.1.running_mean"]
    )


@pytest.mark.parametrize(
    "estimators",
    [(FiniteDifference(), OneStep()), (SAMA(), OneStep(False))],
    ids=["FiniteDifference", "SAMA"],
)
@pytest.mark.parametrize("clipped", [False, True])
def test_what_the_outer_loss_does_not_reach_moves_nothing(estimators, clipped):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = bank.Value(0.7), bank.Value(-0.4)

    def train_loss(model, meta, batch):
        return (meta.value * model.one.value + model.other.value).square()

    def valid_loss(model, meta, batch):
        return (model.one.value - 2).square()

    problem = mt.BilevelProblem(Two(), bank.Value(0.3), train_loss, valid_loss)
    # The norm of the whole gradient mixes what is reached with what is not.
    sgd = mt.inner.SGD(lr=0.1)
    inner = mt.inner.Clipped(sgd, max_norm=0.1) if clipped else sgd
    state = inner.init(problem)
    calls = [
        estimator(problem, inner, state, [None], None).gradient["value"] for estimator in estimators
    ]
    torch.testing.assert_close(*calls, rtol=1e-6, atol=0.0)
