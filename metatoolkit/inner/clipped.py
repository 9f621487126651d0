"""Gradient clipping in front of an inner learner, by the norm of all gradients or by value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Hyperparameter, check_values, hyperparameters_at
from metatoolkit.inner.moments import root
from metatoolkit.inner.registry import learners
from metatoolkit.inner.wrapping import GradientWrapper
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@learners.register()
class Clipped(GradientWrapper):
    """An inner learner whose gradients are clipped before each step, differentiably.

    With ``max_norm`` all gradients g together are scaled by min(1, ``max_norm`` / (‖g‖ + 10⁻⁶)), as
    ``torch.nn.utils.clip_grad_norm_`` does; parameters that the batch does not reach do not count.
    With ``max_value`` each entry is cut to ±``max_value``, as ``clip_grad_value_`` does. The
    derivative goes through the norm; an entry that is cut has the derivative zero. For both, clip
    a clipped learner again: the outer one comes first.

    Clipping by norm makes each coordinate's step read all gradients, so that it has no diagonal
    ``gradient_sensitivity``; solvers for symmetric systems refuse both.

    Args:
        inner: Inner learner that takes the step.
        max_norm: Largest norm of all gradients.
        max_value: Largest absolute value of an entry.
        norm_type: Which norm, ``float("inf")`` for the largest entry.

    Raises:
        ConfigurationError: Not one of both limits is given, or an argument is out of range.

    Example:
        >>> from metatoolkit.inner import SGD
        >>> Clipped(SGD(lr=0.1), max_norm=1.0).options()["max_norm"]
        1.0
    """

    def __init__(
        self,
        inner: InnerLearner,
        max_norm: Hyperparameter | None = None,
        max_value: Hyperparameter | None = None,
        norm_type: float = 2.0,
    ) -> None:
        super().__init__(inner)
        if (max_norm is None) == (max_value is None):
            raise ConfigurationError(
                f"max_norm is {max_norm} and max_value {max_value}; give one of them."
            )
        if not norm_type > 0:
            raise ConfigurationError(f"norm_type is {norm_type}; a number above 0 is needed.")
        limits = {"max_norm": max_norm, "max_value": max_value}
        self._limits = {name: value for name, value in limits.items() if value is not None}
        check_values(self._limits, (), ())
        self.norm_type = float(norm_type)
        self.hyperparameters = self.hyperparameters | self._limits

    @override
    def check(self, problem: BilevelProblem) -> None:
        """Raise unless the learner and the limit fit a problem."""
        self.inner.check(problem)
        with torch.enable_grad():
            hyperparameters_at(self._limits, (), problem, problem.meta_leaves(), 0)

    @override
    def apply(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> InnerState:
        """Return the state after the update with the gradients clipped."""
        clipped, _ = self._clip(problem, state, meta, gradients)
        return self.inner.apply(problem, state, meta, clipped)

    @override
    def gradient_sensitivity(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> Tensors:
        """Return ∂θ⁺/∂g, zero where an entry is cut; see :class:`InnerLearner`.

        Raises:
            UnsupportedError: The norm is clipped, or the learner has no closed form.
        """
        if "max_norm" in self._limits:
            raise UnsupportedError(
                "Clipped(max_norm=...) scales each gradient by the norm of all, so that the step "
                "of a coordinate depends on all gradients and not on its own alone; use "
                "max_value, or an estimator that differentiates the step itself, such as Unrolled."
            )
        clipped, limit = self._clip(problem, state, meta, gradients)
        found = self.inner.gradient_sensitivity(problem, state, meta, clipped)
        return {
            name: torch.where(gradients[name].abs() > limit, 0.0, slope)
            for name, slope in found.items()
        }

    def _clip(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> tuple[Tensors, float | Tensor]:
        """Return the gradients clipped, and the limit."""
        values = hyperparameters_at(self._limits, (), problem, meta, state.step)("")
        if "max_value" in values:
            limit = values["max_value"]
            return {name: _cut(gradient, limit) for name, gradient in gradients.items()}, limit
        if not gradients:
            return gradients, values["max_norm"]
        factor = (values["max_norm"] / (self._norm(gradients) + 1e-6)).clamp(max=1.0)
        scaled = {n: g * factor.to(_real_type(g), copy=False) for n, g in gradients.items()}
        return scaled, values["max_norm"]

    def _norm(self, gradients: Tensors) -> Tensor:
        if self.norm_type == 2.0:
            # A root of one sum, since the norm of one parameter may be 0 and has no derivative.
            squares = [
                (g * g.conj()).real if g.is_complex() else g.square() for g in _all(gradients)
            ]
            return root(torch.stack([square.sum() for square in squares]).sum())
        norms = [torch.linalg.vector_norm(g, self.norm_type) for g in _all(gradients) if g.numel()]
        if not norms:
            return torch.zeros((), device=next(iter(gradients.values())).device)
        return torch.linalg.vector_norm(torch.stack(norms), self.norm_type)

    @override
    def options(self) -> dict[str, Any]:
        """Return the learner that takes the step, the limit and the norm."""
        return {"inner": self.inner, **self._limits, "norm_type": self.norm_type}


def _all(gradients: Tensors) -> list[Tensor]:
    """Return gradients in one type of at least float32, in which their norms are added."""
    wide = torch.float32
    for gradient in gradients.values():
        wide = torch.promote_types(wide, _real_type(gradient))
    return [g if g.is_complex() else g.to(wide) for g in gradients.values()]


def _real_type(tensor: Tensor) -> torch.dtype:
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def _cut(gradient: Tensor, limit: float | Tensor) -> Tensor:
    if gradient.is_complex():
        raise UnsupportedError("a complex gradient cannot be cut to a value; use max_norm.")
    if isinstance(limit, Tensor):
        return torch.minimum(torch.maximum(gradient, -limit), limit)
    return gradient.clamp(-limit, limit)
