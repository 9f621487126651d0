"""First-order MAML and Reptile against closed forms; what they leave alone; what they refuse."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.errors import (
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import FirstOrder, Reptile, Unrolled
from metatoolkit.metaparameters import Initialization
from metatoolkit.testing import bank
from tests.hypergradients.test_cost import Setup
from tests.metaparameters.test_initialization import maml

both = pytest.mark.parametrize("estimator", [FirstOrder, Reptile])


@pytest.mark.parametrize("steps", [1, 4])
def test_closed_forms(steps):
    case = maml()
    curvature, shift = case.train_batches[0]
    theta = start = case.problem.meta.value.detach().clone()
    for _ in range(steps):
        theta = theta - 0.1 * (curvature @ theta - shift)
    first_order = case.call(FirstOrder(steps))
    torch.testing.assert_close(first_order.gradient["value"], theta - case.valid_batch)
    reptile = case.call(Reptile(steps))
    torch.testing.assert_close(reptile.gradient["value"], start - theta)
    outer = (theta - case.valid_batch).square().sum() / 2
    for result in (first_order, reptile):
        torch.testing.assert_close(result.valid_loss, outer)
        torch.testing.assert_close(result.state.parameters["value"], theta)


def test_the_error_of_first_order_is_that_of_the_learning_rate():
    errors = []
    for lr in (1e-2, 1e-3):
        case = maml(mt.inner.SGD(lr=lr))
        exact = case.call(Unrolled(3)).gradient["value"]
        estimate = case.call(FirstOrder(3)).gradient["value"]
        errors.append(float((estimate - exact).norm() / exact.norm()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_one_step_of_reptile_is_the_training_gradient():
    case = maml(mt.inner.SGD(lr=0.1))
    curvature, shift = case.train_batches[0]
    expected = 0.1 * (curvature @ case.problem.meta.value.detach() - shift)
    torch.testing.assert_close(case.call(Reptile(1)).gradient["value"], expected)


@both
@pytest.mark.parametrize("steps", [1, 3])
def test_is_the_derivative_of_its_objective(estimator, steps):
    case = bank.initialized()
    check = mt.check_hypergradient(
        *(case.problem, case.inner, estimator(steps), case.batches(steps), case.valid_batch),
        coordinates=24,
    )
    assert check.relative_error < 1e-6


def test_an_initial_state_that_is_a_function_of_meta():
    # θ_0 = Aλ: both estimates are those of θ_0, pulled back by Aᵀ.
    base = maml()
    matrix = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = mt.BilevelProblem(
        base.problem.model,
        bank.Value([0.5, -1.0]),
        base.problem.train_loss,
        base.problem.valid_loss,
        initial=lambda meta: {"value": matrix @ meta.value},
    )
    case = dataclasses.replace(base, problem=problem)
    with torch.no_grad():
        base.problem.meta.value.copy_(matrix @ problem.meta.value)
    for estimator in (FirstOrder(3), Reptile(3), Unrolled(3)):
        expected = matrix.T @ base.call(estimator).gradient["value"]
        torch.testing.assert_close(case.call(estimator).gradient["value"], expected)


@pytest.mark.parametrize(("estimator", "passes"), [(FirstOrder, 3 * 3 + 3), (Reptile, 3 * 3 + 1)])
def test_passes(estimator, passes):
    setup = Setup("loss", 2)
    problem = mt.BilevelProblem(
        setup.problem.model,
        Initialization(setup.problem.model),
        mt.losses.cross_entropy,
        mt.losses.cross_entropy,
        initial=Initialization.values,
    )
    batches = [setup.batch] * 3
    state = setup.inner.init(problem)
    flops = count_flops(lambda: estimator(3)(problem, setup.inner, state, batches, setup.batch))
    assert flops / count_flops(setup.forward) == pytest.approx(passes, abs=0.1)
    cost = estimator(3)(problem, setup.inner, state, batches, setup.batch).cost
    assert cost.hvp == 0 and cost.forward + 2 * cost.backward == passes


@both
def test_meta_parameters_within_the_steps_are_an_error(estimator):
    with pytest.raises(UnsupportedError, match="log_penalty"):
        bank.adapted().call(estimator(2))
    case = bank.initialized()
    rates = bank.Rates()
    rates.start = Initialization(case.problem.model)
    problem = mt.BilevelProblem(
        case.problem.model,
        rates,
        case.problem.train_loss,
        case.problem.valid_loss,
        initial=lambda meta: meta.start.values(),
    )
    inner = mt.inner.SGD(lr=rates.lr)
    with pytest.raises(UnsupportedError, match=r"\(lr\)"):
        dataclasses.replace(case, problem=problem, inner=inner).call(estimator(2))


def test_reptile_needs_an_initial_state():
    with pytest.raises(UnsupportedError, match="has no initial"):
        bank.ridge().call(Reptile())
    case = maml()
    after, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    with pytest.raises(UnsupportedError, match="is at step 1"):
        case.call(Reptile(), after)
    with pytest.raises(UnusedMetaParameterError, match="step 0"):
        case.call(FirstOrder(), after)


def test_first_order_keeps_the_direct_derivative_and_reptile_refuses_it():
    case = maml()
    meta = torch.nn.Module()
    meta.start = Initialization(case.problem.model)
    meta.direct = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    problem = mt.BilevelProblem(
        case.problem.model,
        meta,
        case.problem.train_loss,
        lambda model, meta, batch: case.problem.valid_loss(model, meta, batch) + meta.direct.sin(),
        initial=lambda meta: meta.start.values(),
    )
    other = dataclasses.replace(case, problem=problem)
    gradient = other.call(FirstOrder(2)).gradient
    assert float(gradient["direct"]) == pytest.approx(float(meta.direct.detach().cos()))
    with pytest.raises(UnsupportedError, match=r"\(direct\)"):
        other.call(Reptile(2))


@pytest.mark.parametrize("steps", [1, 3])
def test_all_see_the_same_outer_loss_and_reach_the_same_state(steps):
    # Dropout and BatchNorm: the masks of the outer loss are those of the state that is reached.
    case = bank.initialized()
    exact = case.call(Unrolled(steps))
    for estimator in (FirstOrder(steps), Reptile(steps)):
        result = case.call(estimator)
        torch.testing.assert_close(result.valid_loss, exact.valid_loss, rtol=1e-13, atol=0)
        for one, other in zip(result.state.tensors(), exact.state.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
        for name, buffer in result.state.buffers.items():
            torch.testing.assert_close(buffer, exact.state.buffers[name])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_start_by_hand(steps):
    # θ_0 = λ, moved after the state was made; each step on a batch of its own.
    case = bank.started()
    state = case.state
    with torch.no_grad():
        case.problem.meta.value.add_(0.5)
    reached = 1.3 * (1 - 0.1 * sum(case.batches(steps)))
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: batch * model.value * meta.value.detach(),
        case.problem.valid_loss,
        initial=case.problem.initial,
    )
    case = dataclasses.replace(case, problem=problem)
    first, reptile = (case.call(kind(steps), state) for kind in (FirstOrder, Reptile))
    assert float(first.gradient["value"]) == pytest.approx(reached - case.valid_batch, rel=1e-12)
    assert float(reptile.gradient["value"]) == pytest.approx(1.3 - reached, rel=1e-12)
    there = {"value": torch.tensor(1.5, dtype=torch.float64)}
    arguments = (problem, case.inner, state, case.batches(steps), case.valid_batch, there)
    moved = (reached + 0.2 - case.valid_batch) ** 2 / 2
    assert float(FirstOrder(steps).objective(*arguments)) == pytest.approx(moved, rel=1e-12)
    way = (1.5 - reached) ** 2 / 2
    assert float(Reptile(steps).objective(*arguments)) == pytest.approx(way, rel=1e-12)


@both
def test_arguments_out_of_range(estimator):
    with pytest.raises(ConfigurationError, match="steps is 0"):
        estimator(0)


def test_defaults():
    assert (FirstOrder().horizon, Reptile().horizon) == (1, 5)


class Parts(torch.nn.Module):
    """An initial value, and two meta-parameters that act elsewhere."""

    def __init__(self):
        super().__init__()
        self.start, self.inside, self.direct = (bank.Value(v) for v in (0.5, 0.3, 0.0))


def in_parts(train_loss, valid_loss):
    problem = mt.BilevelProblem(
        bank.Value(5.0),
        Parts(),
        train_loss,
        valid_loss,
        initial=lambda meta: {"value": meta.start.value},
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [1.0, 2.0, 3.0], 0.25)


def plain_loss(model, meta, batch):
    return (model.value - batch).square() / 2


@both
def test_the_last_batch_tells_whether_meta_acts_within_the_steps(estimator):
    def on_batch(number):
        def train_loss(model, meta, batch):
            loss = plain_loss(model, meta, batch)
            return loss * meta.inside.value if batch == number else loss

        return in_parts(train_loss, plain_loss)

    name = estimator.__name__
    told = rf"\(inside\.value\) act where {name} does not differentiate"
    with pytest.raises(UnsupportedError, match=told):
        on_batch(3.0).call(estimator(3))
    # What no look tells is taken for constant, as is what the batch does not read.
    gradient = on_batch(2.0).call(estimator(3)).gradient
    assert float(gradient["inside.value"]) == 0.0 and float(gradient["start.value"]) != 0.0


def test_what_is_not_finite_is_told_before_what_is_unsupported():
    case = in_parts(
        lambda model, meta, batch: plain_loss(model, meta, batch) * meta.inside.value,
        # The root has an infinite slope at zero, where its value is finite.
        lambda model, meta, batch: plain_loss(model, meta, batch) + meta.direct.value.sqrt(),
    )
    with pytest.raises(NonFiniteError, match=r"the hypergradient of 'direct\.value'"):
        case.call(FirstOrder(2))


def test_a_way_that_is_not_finite_names_its_parameter():
    bad = in_parts(lambda model, meta, batch: model.value * torch.inf, lambda *_: torch.ones(()))
    with pytest.raises(NonFiniteError, match="the way of 'value'"):
        bad.call(Reptile(1))
    bad = in_parts(plain_loss, lambda model, meta, batch: model.value / 0.0)
    for estimator in (Reptile(1), FirstOrder(1)):
        with pytest.raises(NonFiniteError, match="the validation loss"):
            bad.call(estimator)


@both
def test_which_losses_reach_nothing(estimator):
    case = bank.started()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        plain_loss,
        plain_loss,
        initial=lambda meta: {"value": meta.value.detach()},
    )
    case = dataclasses.replace(case, problem=problem)
    told = {FirstOrder: "the initial state and valid_loss", Reptile: "the values that initial ret"}
    with pytest.raises(UnusedMetaParameterError, match=f"^{told[estimator]}"):
        case.call(estimator(2))


@both
def test_what_is_returned_holds_no_graph(estimator):
    result = bank.initialized().call(estimator(2))
    tensors = [*result.state.tensors(), *result.state.buffers.values(), result.valid_loss]
    assert not any(tensor.requires_grad for tensor in [*tensors, *result.gradient.values()])
