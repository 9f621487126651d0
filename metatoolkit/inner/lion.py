"""Lion: steps by the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.groups import listed
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, is_used, split_pairs
from metatoolkit.inner.moments import BETAS
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors


@learners.register()
class Lion(InnerLearner):
    """The update of Lion, differentiable in all it reads.

    Chen et al. 2023, arXiv 2302.06675, algorithm 2: c = β₁ m + (1 − β₁) g, θ ← θ − ``lr`` ·
    (sign(c) + ``weight_decay`` · θ), and m ← β₂ m + (1 − β₂) g. The sign has the derivative 0:
    what moves the gradient alone, such as λ in the training loss or in the betas, has a
    hypergradient of zero through the steps, rightly. With ``smoothing`` > 0, c / √(c² +
    ``smoothing``²) stands for sign(c), through which λ is seen. Memory beyond θ: one tensor per
    parameter.

    Args:
        lr: Learning rate.
        betas: Weight β₁ of the momentum in the step, and its decay rate β₂.
        weight_decay: Factor of the decoupled weight decay.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        smoothing: Size of c below which the sign is smooth.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Lion(lr=1e-4)
        Lion(lr=0.0001, beta1=0.9, beta2=0.99, weight_decay=0.0, smoothing=0.0, maximize=False, \
groups=0)
    """

    below_one = frozenset({"beta1", "beta2"})

    def __init__(
        self,
        lr: Hyperparameter = 1e-4,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        smoothing: Hyperparameter = 0.0,
        maximize: bool = False,
    ) -> None:
        values = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        values |= {"smoothing": smoothing, "maximize": maximize}
        super().__init__(
            split_pairs(values, BETAS), [split_pairs(g, BETAS) for g in listed(groups)]
        )

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return a momentum of zeros for each parameter."""
        return zero_slots(parameters, "momentum")

    @staticmethod
    def _mixture(
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        name: str,
    ) -> Tensor:
        weight = hyperparameters[name]
        return weight * slots["momentum"] + (1.0 - weight) * gradient

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its momentum after one step."""
        del step
        rate, smoothing = hyperparameters["lr"], hyperparameters["smoothing"]
        mixture = self._mixture(gradient, slots, hyperparameters, "beta1")
        direction = mixture.sign()
        if is_used(smoothing):
            direction = mixture / (mixture.square() + smoothing**2).sqrt()
        kept = 1.0 - rate * hyperparameters["weight_decay"]
        momentum = self._mixture(gradient, slots, hyperparameters, "beta2")
        return kept * parameter - rate * direction, {"momentum": momentum}

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g in closed form, zero without smoothing; see :class:`InnerLearner`."""
        del step
        smoothing = hyperparameters["smoothing"]
        if not is_used(smoothing):
            return parameter.new_zeros(())
        mixture = self._mixture(gradient, slots, hyperparameters, "beta1")
        slope = smoothing**2 / (mixture.square() + smoothing**2) ** 1.5
        return -hyperparameters["lr"] * (1.0 - hyperparameters["beta1"]) * slope
