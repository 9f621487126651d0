"""A step differentiates to what finite differences are, and what a learner says of it holds."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from metatoolkit.diagnostics.check import HypergradientCheck, check_hypergradient
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_linear_in_gradient, tells_sensitivity
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.expectations import Inapplicable, expect, expect_close
from metatoolkit.testing.inner_learners.calls import PROBLEMS, build, take

SUITE: Suite[InnerLearner] = Suite("inner learner", InnerLearner)

# Where differences of a hyper-parameter, which move it by 1e-5, are no worse than their rounding.
_LEAST, _MOST = 1e-2, 0.99


@SUITE.check(problem=PROBLEMS)
def with_a_graph_the_values_are_the_same_and_lead_to_state_and_meta(
    make: Make[InnerLearner], problem: str
) -> None:
    """``create_graph`` changes no value, and the result depends on θ and on λ."""
    instance = build(problem, make)
    given, inner = instance.problem, instance.inner
    meta, state = given.meta_leaves(), instance.state
    batch = instance.train_batches[0]
    plain, loss = inner.step(given, state, meta, batch)
    points = [tensor.clone().requires_grad_() for tensor in state.tensors()]
    graph, told = inner.step(given, state.with_tensors(points), meta, batch, create_graph=True)
    expect_close("the loss with a graph", told.detach(), loss, 1e-12, 0.0)
    for one, two in zip(graph.tensors(), plain.tensors(), strict=True):
        expect_close("a tensor of the state with a graph", one.detach(), two, 1e-12, 1e-14)
    for name, tensor in graph.parameters.items():
        expect(tensor.requires_grad, f"{name!r} after the step to carry a graph", "none")
    total = torch.stack([tensor.sum() for tensor in graph.parameters.values()]).sum()
    count = len(state.parameters)
    found = torch.autograd.grad(total, [*points[:count], *meta.values()], allow_unused=True)
    reached = {n: g is not None for n, g in zip([*state.parameters, *meta], found, strict=True)}
    # Where λ stands in the place of θ, it is what the first step begins with.
    wanted = list(meta) if given.initial is not None else [*state.parameters]
    missed = [name for name in wanted if not reached[name]]
    expect(not missed, "a graph that leads to each tensor before the step", f"not to {missed}")


@SUITE.check(problem=("matrices", "started"))
def derivatives_are_those_of_finite_differences(make: Make[InnerLearner], problem: str) -> None:
    """The hypergradient through three steps agrees with differences in λ."""
    instance = build(problem, make)
    _agreement(instance, 3, "the derivative of three steps in λ")


@SUITE.check()
def coordinates_without_a_gradient_have_finite_derivatives(make: Make[InnerLearner]) -> None:
    """A gradient that is zero everywhere, as of a dead feature, divides nothing."""
    instance = build("dead_coordinates", make)
    _agreement(instance, 2, "the derivative of two steps in λ beside dead coordinates")


@SUITE.check()
def hyperparameters_may_be_meta_parameters(make: Make[InnerLearner]) -> None:
    """Each number in the learner may be λ, with the derivative of finite differences."""
    learner = make()
    if type(learner).apply is not InnerLearner.apply:
        raise Inapplicable("its step is made of other learners or its own")
    numbers = {
        name: float(value)
        for name, value in learner.hyperparameters.items()
        if isinstance(value, float) and (_LEAST <= value <= _MOST or (name == "lr" and value > 0))
    }
    if not numbers:
        raise Inapplicable("no hyper-parameter is a number that differences can move")
    given = build("matrices", make)
    meta = nn.ParameterDict(
        {name: nn.Parameter(torch.tensor(value).double()) for name, value in numbers.items()}
    )
    inner = copy.deepcopy(learner)
    inner.hyperparameters = learner.hyperparameters | dict(meta)
    loss = given.problem.valid_loss
    problem = BilevelProblem(given.problem.model, meta, loss, loss)
    instance = dataclasses.replace(given, problem=problem, inner=inner)
    what = "the derivative of three steps in the hyper-parameters"
    found = _agreement(instance, 3, what, coordinates=None)
    # Each by itself, since they differ in size.
    norm = float(found.reference.norm())
    pairs = zip(meta, found.estimate.tolist(), found.reference.tolist(), strict=True)
    for name, estimate, reference in pairs:
        near = abs(estimate - reference) <= 1e-3 * abs(reference) + 1e-6 * norm
        expect(near, f"{reference:.6g} as the derivative in {name}", f"{estimate:.6g}")


@SUITE.check()
def a_step_that_is_said_to_be_linear_in_the_gradient_is(make: Make[InnerLearner]) -> None:
    """``linear_in_gradient``: θ after the step is θ − D g plus what no gradient moves."""
    instance, state, gradients = _gradients(make)
    if not is_linear_in_gradient(instance.inner):
        raise Inapplicable("the learner does not say so")
    meta = instance.problem.meta_parameters()

    def after(scale: float) -> dict[str, Tensor]:
        scaled = {name: scale * gradient for name, gradient in gradients.items()}
        return instance.inner.apply(instance.problem, state, meta, scaled).parameters

    zero, one, three = after(0.0), after(1.0), after(3.0)
    for name, tensor in three.items():
        wanted = zero[name] + 3 * (one[name] - zero[name])
        expect_close(f"{name!r} after three times the gradient", tensor, wanted, 1e-9, 1e-12)


@SUITE.check()
def the_sensitivity_that_is_told_is_the_derivative_of_the_update(make: Make[InnerLearner]) -> None:
    """``gradient_sensitivity`` is the whole Jacobian ∂θ⁺/∂g, which is diagonal."""
    instance, state, gradients = _gradients(make)
    inner, problem = instance.inner, instance.problem
    if not tells_sensitivity(inner, InnerLearner):
        raise Inapplicable("the learner does not tell it")
    meta = problem.meta_parameters()
    found = inner.gradient_sensitivity(problem, state, meta, gradients)
    for name, gradient in gradients.items():

        def after(value: Tensor, name: str = name) -> Tensor:
            moved = inner.apply(problem, state, meta, gradients | {name: value})
            return moved.parameters[name]

        size = gradient.numel()
        jacobian = torch.autograd.functional.jacobian(after, gradient).reshape(size, size)
        told = found[name].reshape(size).diag()
        expect_close(f"the sensitivity of {name!r}", told, jacobian, 1e-9, 1e-12)


def _gradients(make: Make[InnerLearner]) -> tuple[ProblemInstance, InnerState, dict[str, Tensor]]:
    """Return a problem, a state after one step, and the gradient there."""
    instance = build("matrices", make)
    problem, inner = instance.problem, instance.inner
    state = take(instance, instance.state, instance.batches(1))
    leaves = state.map(lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()))
    meta = problem.meta_parameters()
    _, gradients, _ = inner.gradients(problem, leaves, meta, instance.train_batches[1])
    return instance, state, gradients


def _agreement(
    instance: ProblemInstance, steps: int, what: str, coordinates: int | None = 8
) -> HypergradientCheck:
    """Return how the derivative through steps compares with differences, which it must not miss."""
    problem, inner, state, batches, valid = instance.arguments(steps)
    estimator = Unrolled(steps)
    found = check_hypergradient(
        problem, inner, estimator, batches, valid, state, coordinates=coordinates
    )
    expect(found.verdict != "differs", what, found)
    return found
