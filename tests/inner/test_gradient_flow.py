"""Gradient flow: its steps, its order, and what stays the same along it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import SGD, GradientFlow
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing import bank


def test_euler_is_gradient_descent():
    instance = bank.matrices()
    problem, _, start, batches, _ = instance.arguments(1)
    meta = problem.meta_parameters()
    found, loss = GradientFlow(0.6, 4).step(problem, start, meta, batches[0])
    sgd = SGD(0.15)
    state = sgd.init(problem, instance.seed)
    first = None
    for _ in range(4):
        state, own = sgd.step(problem, state, meta, batches[0])
        first = own if first is None else first
    assert torch.equal(loss, first)
    assert found.step == 1
    for name, tensor in state.parameters.items():
        torch.testing.assert_close(found.parameters[name], tensor, rtol=1e-13, atol=1e-15)


def decay(curvature: Tensor) -> BilevelProblem:
    model = nn.ParameterDict({"theta": nn.Parameter(torch.ones(2).double())})

    def loss(model: nn.Module, meta: nn.Module, batch: None) -> Tensor:
        return meta.value * (curvature * model["theta"].square()).sum() / 2

    return BilevelProblem(model, bank.Value(1.0), loss, loss)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order):
    """The flow of a quadratic is θ_0 exp(−c T)."""
    curvature = torch.tensor([0.5, 2.0]).double()
    problem, off = decay(curvature), []
    for steps in (50, 100, 200):
        inner = GradientFlow(1.5, steps, solver)
        state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), None)
        off.append(float((state.parameters["theta"] - (-1.5 * curvature).exp()).norm()))
    for one, half in itertools.pairwise(off):
        assert one / half == pytest.approx(2**order, rel=0.1)


def test_a_group_flows_for_a_time_of_its_own_and_ascent_grows():
    problem = decay(torch.ones(2).double())
    inner = GradientFlow(1.0, 500, "heun", [{"params": ["theta"], "time": 0.5}], maximize=True)
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), None)
    assert float(state.parameters["theta"][0]) == pytest.approx(math.exp(0.5), rel=1e-6)
    assert inner.with_steps(7, "euler").steps == 7
    assert inner.steps == 500


def test_masks_and_running_statistics_are_those_of_one_step():
    """A flow is that of one function: of one batch, one dropout mask, and one move of buffers."""
    instance = bank.small_net()
    problem, _, start, batches, _ = instance.arguments(1)
    meta = problem.meta_parameters()
    one, _ = GradientFlow(0.1, 1).step(problem, start, meta, batches[0])
    many, _ = GradientFlow(0.1, 5, "heun").step(problem, start, meta, batches[0])
    for name, buffer in one.buffers.items():
        assert torch.equal(many.buffers[name], buffer)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"time": -1.0}, "time is -1.0"),
        ({"time": 1.0, "steps": 0}, "steps is 0"),
        ({"time": 1.0, "solver": "rk4"}, "solver is 'rk4'; accepted: euler, heun"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ConfigurationError, match=told):
        GradientFlow(**options)
