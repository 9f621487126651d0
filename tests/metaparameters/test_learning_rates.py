"""Learned inner learning rates: names, shapes, and the derivative through the inner steps."""

import copy

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import ConjugateGradient, ForwardMode, Implicit, Unrolled
from metatoolkit.metaparameters import LearningRates
from metatoolkit.testing import bank


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4)}),
        ({"per": "tensor"}, {"0.weight": (), "0.bias": (), "2.weight": ()}),
        ({"per": "layer"}, {"0.rate": (), "2.rate": ()}),
        ({"per": "layer", "steps": 3}, {"0.rate": (3,), "2.rate": (3,)}),
        ({"steps": 3, "parameters": ["0.bias"]}, {"0.bias": (3, 4)}),
    ],
)
def test_shapes_and_names(options, shapes):
    model = network()
    model[2].bias.requires_grad_(False)
    rates = LearningRates(model, 0.1, **options)
    assert {n: tuple(p.shape) for n, p in rates.named_parameters()} == shapes
    assert all(bool((p == 0.1).all()) and p.dtype == torch.float64 for p in rates.parameters())
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if "parameters" in options:
        own = {"0.bias": own["0.bias"]}
    found = rates.at(2)
    assert set(found) == set(own)
    coordinate = options.get("per", "coordinate") == "coordinate"
    assert all(r.shape == (own[n].shape if coordinate else ()) for n, r in found.items())
    assert copy.deepcopy(rates).at(2).keys() == found.keys()


def test_layers_have_a_rate_each_also_where_one_holds_another():
    model = nn.Linear(2, 1)
    assert set(LearningRates(model, 0.1, "layer").at(0)) == {"weight", "bias"}
    model.inner = nn.Linear(1, 1)
    rates = LearningRates(model, 0.1, "layer")
    assert [name for name, _ in rates.named_parameters()] == ["rate", "inner.rate"]
    with torch.no_grad():
        rates.get_parameter("inner.rate").fill_(0.5)
    found = {name: float(rate.detach()) for name, rate in rates.at(0).items()}
    assert found["inner.weight"] == 0.5 and found["weight"] == pytest.approx(0.1)


def quadratic(options, inner=None, steps=2):
    """A quadratic with a rate for each coordinate, all of them different."""
    case = bank.quadratic(5.0, 6)
    meta = LearningRates(case.problem.model, 0.1, **options)
    with torch.no_grad():
        for rate in meta.parameters():
            rate.mul_(torch.linspace(1, 2, rate.numel(), dtype=rate.dtype).view_as(rate))
    problem = mt.BilevelProblem(
        case.problem.model,
        meta,
        lambda model, meta, batch: (
            model.value.dot(batch[0] @ model.value) / 2 - model.value.dot(batch[1])
        ),
        lambda model, meta, batch: (model.value - batch).square().sum() / 2,
    )
    curvature, _, shift = case.train_batches[0]
    inner = inner or mt.inner.SGD(lr=LearningRates.at)
    return problem, inner, [(curvature, shift)] * steps, case.valid_batch


def test_meta_sgd_in_closed_form():
    problem, inner, batches, target = quadratic({})
    curvature, shift = batches[0]
    rates = problem.meta.value.detach()
    start = problem.parameters()["value"]
    slope = curvature @ start - shift
    after = start - rates * slope
    later_slope = curvature @ after - shift
    end = after - rates * later_slope
    # dL/da = -g₂ v - g₁ (v - A (a v)), with v the outer gradient.
    outer = end - target
    expected = -later_slope * outer - slope * (outer - curvature @ (rates * outer))
    result = Unrolled(2)(problem, inner, inner.init(problem), batches, target)
    torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(result.state.parameters["value"], end)


@pytest.mark.parametrize("estimator", [Unrolled(3), ForwardMode(3)], ids=["reverse", "forward"])
@pytest.mark.parametrize("options", [{}, {"per": "tensor"}, {"per": "layer", "steps": 3}], ids=str)
@pytest.mark.parametrize("make", [mt.inner.SGD, mt.inner.Adam, mt.inner.RMSprop])
def test_the_derivative_is_that_of_finite_differences(make, options, estimator):
    problem, inner, batches, target = quadratic(options, make(lr=LearningRates.at), steps=3)
    check = mt.check_hypergradient(problem, inner, estimator, batches, target)
    assert check.relative_error < 1e-6


def test_solvers_see_the_hessian_through_rates_of_coordinates():
    # The inner optimum does not depend on how fast it is reached.
    problem, inner, batches, target = quadratic({}, steps=1)
    state = inner.init(problem)
    curvature, shift = batches[0]
    optimum = torch.linalg.solve(curvature, shift)
    state = state.replaced(parameters={"value": optimum})
    result = Implicit(ConjugateGradient(20))(problem, inner, state, batches, target)
    assert float(result.gradient["value"].abs().max()) < 1e-12


def test_groups_have_the_first_say():
    problem, *_ = quadratic({})
    inner = mt.inner.SGD(lr=LearningRates.at, groups=[{"params": ["value"], "lr": 0.25}])
    start = problem.parameters()["value"]
    state = inner.apply(
        problem, inner.init(problem), problem.meta_parameters(), {"value": torch.ones_like(start)}
    )
    torch.testing.assert_close(state.parameters["value"], start - 0.25)


def test_a_parameter_without_a_rate_and_a_step_beyond_the_last_are_errors():
    model = network()

    def entropy(model, meta, batch):
        return mt.losses.cross_entropy(model, meta, batch)

    def make(**options):
        meta = LearningRates(model, 0.1, **options)
        return mt.BilevelProblem(model, meta, entropy, entropy)

    batch = (torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1]))
    inner = mt.inner.SGD(lr=LearningRates.at)
    problem = make(parameters=["0.*"])
    with pytest.raises(ConfigurationError, match=r"lr is a function.*none for '2\.weight'"):
        inner.step(problem, inner.init(problem), problem.meta_parameters(), batch)
    rest = mt.inner.SGD(lr=LearningRates.at, groups=[{"params": ["2.*"], "lr": 0.1}])
    rest.step(problem, rest.init(problem), problem.meta_parameters(), batch)
    problem = make(steps=1)
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), batch)
    with pytest.raises(ConfigurationError, match="inner step 2 has no learning rate"):
        inner.step(problem, state, problem.meta_parameters(), batch)


def test_arguments():
    for options, message in (
        ({"per": "neuron"}, "per is 'neuron'; accepted: 'coordinate', 'tensor', 'layer'"),
        ({"lr": 0.0}, "lr is 0.0; a finite number above 0"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"parameters": ["5.*"]}, r"'5\.\*' matches no parameter"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            LearningRates(network(), **{"lr": 0.1, **options})
