"""Adam."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.bundles import takes_bundles
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay
from metatoolkit.inner.moments import MomentLearner, move, move_sensitivity, next_moments
from metatoolkit.inner.registry import learners


@learners.register()
class Adam(MomentLearner):
    """The update of ``torch.optim.Adam``, step for step, differentiable in all it reads.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 1. With g the gradient plus ``weight_decay`` · θ
    and t the number of the step from 1: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², and
    θ ← θ − ``lr`` · m̂ / (√v̂ + ``eps``) with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ).

    A coordinate whose gradients were all zero has the finite derivative that the map has there:
    m is linear in the gradients and √v a norm of them, so that √v enters in second order only.
    Memory beyond θ: two tensors per parameter.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own.
        eps: Term added to the denominator.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        amsgrad: Whether the largest v̂ so far divides instead of the present one, as torch.optim
            takes it (Reddi et al. 2018, arXiv 1904.09237). One more tensor per parameter.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Adam(lr=1e-3, groups=[{"params": ["head.*"], "betas": (0.5, 0.999)}])
        Adam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, amsgrad=False, \
maximize=False, groups=1)
    """

    def __init__(
        self,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, groups, amsgrad=amsgrad, maximize=maximize)

    @override
    @takes_bundles
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its moments after one step."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        moments = next_moments(gradient, slots, hyperparameters)
        return parameter + move(moments, hyperparameters, step), moments

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
        return move_sensitivity(gradient, slots, hyperparameters, step)
