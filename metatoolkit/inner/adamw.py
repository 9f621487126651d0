"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.bundles import takes_bundles
from metatoolkit.inner.hyperparameters import Group, Hyperparameter
from metatoolkit.inner.moments import MomentLearner, move, move_sensitivity, next_moments
from metatoolkit.inner.registry import learners


@learners.register()
class AdamW(MomentLearner):
    """The update of ``torch.optim.AdamW``, step for step, differentiable in all it reads.

    Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2: θ shrinks by 1 − ``lr`` ·
    ``weight_decay`` and moves as with :class:`Adam`, whose moments do not see the decay. Memory
    beyond θ: two tensors per parameter.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own.
        eps: Term added to the denominator.
        weight_decay: Factor of the decay.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        amsgrad: Whether the largest v̂ so far divides instead of the present one, as torch.optim
            takes it (Reddi et al. 2018, arXiv 1904.09237). One more tensor per parameter.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> AdamW(lr=1e-3, weight_decay=0.1)
        AdamW(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.1, amsgrad=False, \
maximize=False, groups=0)
    """

    def __init__(
        self,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 1e-2,
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
        moments = next_moments(gradient, slots, hyperparameters)
        kept = 1.0 - hyperparameters["lr"] * hyperparameters["weight_decay"]
        return kept * parameter + move(moments, hyperparameters, step), moments

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
        del parameter
        return move_sensitivity(gradient, slots, hyperparameters, step)
