"""Losses whose graph reaches parameters of a module itself, or none at all."""

import copy

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import (
    FiniteDifference,
    ForwardMode,
    Unrolled,
)
from metatoolkit.stateless.graphs import inspect_graph, watch_second_derivatives
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS, learned_as_it_takes
from tests.stateless.functions import Once, value_case


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_penalty_on_captured_parameters_is_refused(name):
    model, meta = nn.Linear(2, 1).double(), bank.Value(0.1)
    captured = list(model.parameters())

    def train_loss(model, meta, batch):
        return model(batch).square().mean() + meta.value * sum(p.square().sum() for p in captured)

    def valid_loss(model, meta, batch):
        return model(batch).square().mean()

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    batch = torch.randn(4, 2, dtype=torch.float64)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    estimator = ESTIMATORS[name]()
    if name in ("FirstOrder", "Leap", "Reptile"):
        pytest.skip("takes λ in the initial state only")
    with pytest.raises(
        ConfigurationError, match=r"model\.(weight|bias).*list\(model\.parameters\(\)\)"
    ):
        learned_as_it_takes(case, estimator).call(estimator)
    with pytest.raises(ConfigurationError, match="outside of the loss"):
        case.inner.step(problem, case.state, problem.meta_parameters(), batch)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_outer_loss_of_captured_parameters_is_refused(name):
    model, meta = bank.Value(0.3), bank.Value(0.4)
    captured = list(model.parameters())

    def train_loss(model, meta, batch):
        return (model.value - 1) ** 2 + meta.value * model.value**2

    def valid_loss(model, meta, batch):
        return (model.value - 0.5) ** 2 + meta.value * captured[0] ** 2

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    if name in ("Leap", "Reptile"):
        pytest.skip("takes λ in the initial state only")
    estimator = ESTIMATORS[name]()
    with pytest.raises(ConfigurationError, match=r"valid_loss uses the parameter 'model\.value'"):
        learned_as_it_takes(case, estimator).call(estimator)


def test_a_captured_meta_parameter_is_refused():
    meta = bank.Value(0.4)
    penalty = meta.value.exp()

    def train_loss(model, _, batch):
        return (model.value - 1) ** 2 + penalty * model.value**2

    def valid_loss(model, _, batch):
        return (model.value - 0.5) ** 2

    problem = mt.BilevelProblem(bank.Value(0.3), meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    with pytest.raises(ConfigurationError, match=r"meta\.value"):
        case.call(Unrolled(1))


def test_the_penalty_that_the_error_tells_to_write_is_right():
    model, meta = nn.Linear(2, 1, bias=False).double(), bank.Value(0.1)

    def train_loss(model, meta, batch):
        return meta.value * sum(p.square().sum() for p in model.parameters())

    def valid_loss(model, meta, batch):
        return model.weight.sum()

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    found = case.call(Unrolled(1)).gradient["value"]
    torch.testing.assert_close(found, -0.2 * model.weight.detach().sum())


def test_parameters_of_another_network_are_constants():
    teacher = nn.Linear(1, 1).double()

    def train_loss(model, meta, batch):
        return (model.value - teacher(torch.ones(1, dtype=torch.float64)).sum()) ** 2 * meta.value

    case = value_case(train_loss)
    target = float(teacher(torch.ones(1, dtype=torch.float64)).detach())
    after = 0.7 - 0.1 * 0.4 * 2 * (0.7 - target)
    expected = 2 * (after - 0.5) * -0.1 * 2 * (0.7 - target)
    assert float(case.call(Unrolled(1)).gradient["value"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "cut",
    [
        lambda loss: loss.detach(),
        lambda loss: torch.tensor(loss.item()),
        lambda loss: torch.tensor(0.3, requires_grad=True) * loss.detach(),
    ],
)
def test_a_training_loss_without_a_graph_is_an_error(cut):
    case = value_case(lambda model, meta, batch: cut((model.value - meta.value) ** 2))
    with pytest.raises(UnsupportedError, match=r"no gradient in any inner parameter.*detach\(\)"):
        case.inner.step(case.problem, case.state, case.problem.meta_parameters(), None)
    for estimator in (Unrolled(1), FiniteDifference(), ForwardMode(2)):
        with pytest.raises(UnsupportedError, match="no gradient in any inner parameter"):
            case.call(estimator)


def test_inference_mode_is_an_error():
    case = value_case(lambda model, meta, batch: (model.value - meta.value) ** 2)
    state = case.state
    with torch.inference_mode():
        with pytest.raises(UnsupportedError, match="inference_mode"):
            case.inner.step(case.problem, state, case.problem.meta_parameters(), None)
        for make in ESTIMATORS.values():
            with pytest.raises(UnsupportedError, match="inference_mode"):
                case.call(make(), state)
    with torch.no_grad():
        right = case.call(Unrolled(1), state).gradient["value"]
    torch.testing.assert_close(right, case.call(Unrolled(1), state).gradient["value"])


def test_a_copy_of_a_problem_knows_its_own_parameters():
    case = bank.illustration()
    copied = copy.deepcopy(case.problem)
    del case
    others = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(100)]

    def train_loss(model, meta, batch):
        return (model.value - meta.value) ** 2 + sum(others)

    copied.train_loss = train_loss
    again = bank.ProblemInstance(copied, mt.inner.SGD(lr=0.1), [None], None)
    assert again.call(Unrolled(1)).gradient["value"].isfinite()


def test_what_lies_before_given_tensors_is_not_looked_at():
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    watch_second_derivatives(Once.apply(x * 2).detach() * x, [x])
    moved = Once.apply(x * 2)
    watch_second_derivatives(moved.sin(), [moved])
    with pytest.raises(UnsupportedError, match="Once is marked once_differentiable"):
        watch_second_derivatives(Once.apply(moved * 3).sin(), [moved])
    # Not between the loss and what it is differentiated in.
    other = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    aside = (other * 1).sin()
    watch_second_derivatives(Once.apply(moved) * aside, [aside])


def test_what_a_live_parameter_is_given_as_is_accepted():
    live = torch.tensor(0.7, requires_grad=True)
    other = torch.tensor(0.2, requires_grad=True)
    names = {"model.w": live}.get
    assert inspect_graph(live * 2, "loss", names, {"model.w": live}) is False
    assert inspect_graph(other * live.detach(), "loss", names, {"model.w": other}) is False
    # One that no tensor was given for is a constant of the evaluation.
    assert inspect_graph(live * 2, "loss", names, {}) is False
    with pytest.raises(ConfigurationError, match=r"loss uses the parameter 'model\.w'"):
        inspect_graph(other * live, "loss", names, {"model.w": other})
