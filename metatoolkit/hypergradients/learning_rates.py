"""The learning rates of a gradient step, per entry of the parameters."""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_linear_in_gradient
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.traced_flags import holds, is_traced


def learning_rates(problem: BilevelProblem, inner: InnerLearner, state: InnerState) -> Tensors:
    """Return D of θ⁺ = θ − D g(θ) + …, the factor of the gradient in a step of SGD.

    Args:
        problem: The bilevel problem.
        inner: Inner learner, such as SGD, whose step is linear in the gradient.
        state: State before the step.

    Returns:
        One tensor of the shape of the parameter for each parameter name, below 0 where the
        training loss is ascended.

    Raises:
        UnsupportedError: The learner's step is not linear in the gradient, or a learning rate is 0.
    """
    if not is_linear_in_gradient(inner):
        raise UnsupportedError(
            f"the step of {type(inner).__name__} is no gradient step with a learning rate; use "
            "SGD, or FixedPoint, NormalEquationCG or GMRES in Implicit, which take any map."
        )
    meta = {name: tensor.detach() for name, tensor in problem.meta_parameters().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.parameters.items()}
    sensitivity = inner.gradient_sensitivity(problem, state, meta, zeros)
    return {name: checked_rate(name, -diagonal) for name, diagonal in sensitivity.items()}


def checked_rate(name: str, rate: Tensor) -> Tensor:
    """Return the learning rate of a parameter, if that moves with its gradient.

    Args:
        name: Name of the parameter.
        rate: Its learning rate, one number or one for each entry.

    Raises:
        UnsupportedError: It is 0 or not finite.
    """
    if rate.dim() == 0 and not is_traced():
        wrong = not cmath.isfinite(number := rate.item()) or number == 0
    else:
        wrong = holds(~((rate != 0) & torch.isfinite(rate)).all())
    if wrong:
        raise UnsupportedError(
            f"the learning rate of {name!r} is not above 0 (or maximize=True turns its step "
            "around), so that the inner step does not descend to it; freeze it with "
            "requires_grad_(False), or give it a learning rate."
        )
    return rate
