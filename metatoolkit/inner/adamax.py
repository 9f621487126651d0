"""Adamax: Adam with the largest gradient so far in place of the second moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay, add_quotient
from metatoolkit.inner.moments import MomentLearner, unbiased_rate
from metatoolkit.inner.registry import learners
from metatoolkit.state import Tensors


@learners.register()
class Adamax(MomentLearner):
    """The update of ``torch.optim.Adamax``, step for step, differentiable in all it reads.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 2. With g the gradient plus ``weight_decay`` · θ
    and t the number of the step from 1: m ← β₁ m + (1 − β₁) g, u ← max(β₂ u, |g| + ``eps``), and
    θ ← θ − ``lr`` / (1 − β₁ᵗ) · m / u. The derivative is that of the larger one; where both are the
    same, that of |g| + ``eps``. A coordinate whose gradients were all zero has the finite
    derivative that the map has there, as with Adam. Memory beyond θ: two tensors per parameter.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of m and u, each a hyper-parameter of its own.
        eps: Term added to the size of each gradient.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Adamax(lr=1e-3)
        Adamax(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, maximize=False, \
groups=0)
    """

    moments = ("first_moment", "largest_gradient")
    flags = InnerLearner.flags

    def __init__(
        self,
        lr: Hyperparameter = 2e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, groups, maximize=maximize)

    @staticmethod
    def _next(
        gradient: Tensor, slots: dict[str, Tensor], hyperparameters: dict[str, float | Tensor]
    ) -> tuple[Tensors, Tensor]:
        """Return m and u after the step, and where the present gradient is the largest."""
        beta1 = hyperparameters["beta1"]
        present = gradient.abs() + hyperparameters["eps"]
        former = hyperparameters["beta2"] * slots["largest_gradient"]
        newest = present >= former
        moments = {
            "first_moment": beta1 * slots["first_moment"] + (1.0 - beta1) * gradient,
            "largest_gradient": torch.where(newest, present, former),
        }
        return moments, newest

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, its momentum and its largest gradient after one step."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        moments, _ = self._next(gradient, slots, hyperparameters)
        rate = -unbiased_rate(hyperparameters, step)
        first, largest = moments["first_moment"], moments["largest_gradient"]
        return add_quotient(parameter, first, largest, rate), moments

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g in closed form; see :class:`InnerLearner`."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        moments, newest = self._next(gradient, slots, hyperparameters)
        largest = moments["largest_gradient"]
        slope = gradient.sign().masked_fill(~newest, 0.0)
        second = moments["first_moment"] * slope / largest.square()
        quotient = (1.0 - hyperparameters["beta1"]) / largest - second
        return -unbiased_rate(hyperparameters, step) * quotient
