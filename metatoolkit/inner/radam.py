"""RAdam: Adam with a rectified variance of its first steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter
from metatoolkit.inner.moments import (
    MomentLearner,
    decayed,
    next_moments,
    root,
    unbiased_rate,
)
from metatoolkit.inner.registry import learners


@learners.register()
class RAdam(MomentLearner):
    """The update of ``torch.optim.RAdam``, step for step, differentiable in all it reads.

    Liu et al. 2020, arXiv 1908.03265, algorithm 2. With m̂ and v̂ as in :class:`Adam`, t the number
    of the step from 1, ρ∞ = 2 / (1 − β₂) − 1 and ρ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ): θ ← θ − ``lr`` · r ·
    m̂ √(1 − β₂ᵗ) / (√v + ``eps``) with r the rectification where ρ > 5, and θ ← θ − ``lr`` · m̂
    before. Memory beyond θ: two tensors per parameter.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own. At the β₂
            where ρ passes 5 the step jumps, and has no derivative.
        eps: Term added to the denominator.
        weight_decay: Factor of the L2 penalty, added to the gradient, or of the decoupled decay.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        decoupled_weight_decay: Whether θ shrinks by 1 − ``lr`` · ``weight_decay`` instead, as with
            :class:`AdamW`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> RAdam(lr=1e-3)
        RAdam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, \
decoupled_weight_decay=False, maximize=False, groups=0)
    """

    flags = InnerLearner.flags | {"decoupled_weight_decay"}

    def __init__(
        self,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        flags = {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
        super().__init__(lr, betas, eps, weight_decay, groups, **flags)

    @staticmethod
    def _rates(
        hyperparameters: dict[str, float | Tensor], step: int
    ) -> tuple[float | Tensor, float | Tensor | None]:
        """Return lr / (1 − β₁ᵗ), and r √(1 − β₂ᵗ) where the variance is rectified."""
        beta2 = hyperparameters["beta2"]
        rate = unbiased_rate(hyperparameters, step)
        correction = 1.0 - beta2 ** (step + 1)
        limit = 2.0 / (1.0 - beta2) - 1.0
        length = limit - 2.0 * (step + 1) * (1.0 - correction) / correction
        if not bool(length > 5.0):
            return rate, None
        ratio = (length - 4.0) * (length - 2.0) * limit
        ratio = ratio / ((limit - 4.0) * (limit - 2.0) * length)
        return rate, (ratio * correction) ** 0.5

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its moments after one step."""
        parameter, gradient = decayed(parameter, gradient, hyperparameters)
        moments = next_moments(gradient, slots, hyperparameters)
        rate, rectified = self._rates(hyperparameters, step)
        direction = moments["first_moment"]
        if rectified is not None:
            length = root(moments["second_moment"])
            direction = rectified * (direction / (length + hyperparameters["eps"]))
        return parameter - rate * direction, moments

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
        _, gradient = decayed(parameter, gradient, hyperparameters)
        rate, rectified = self._rates(hyperparameters, step)
        slope = 1.0 - hyperparameters["beta1"]
        if rectified is None:
            return -rate * slope * parameter.new_ones(())
        moments = next_moments(gradient, slots, hyperparameters)
        length = root(moments["second_moment"])
        denominator = length + hyperparameters["eps"]
        bend = (1.0 - hyperparameters["beta2"]) * gradient / length.masked_fill(length == 0, 1.0)
        second = moments["first_moment"] * bend / denominator.square()
        return -rate * rectified * (slope / denominator - second)
