"""NAdam: Adam with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter
from metatoolkit.inner.moments import (
    MomentLearner,
    decayed,
    divided,
    divided_sensitivity,
    next_moments,
)
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import number_slots
from metatoolkit.state import Tensors


@learners.register()
class NAdam(MomentLearner):
    """The update of ``torch.optim.NAdam``, step for step, differentiable in all it reads.

    Dozat 2016, "Incorporating Nesterov momentum into Adam". With m and v̂ as in :class:`Adam`, t the
    number of the step from 1, μₜ = β₁ (1 − ½ · 0.96^(t · ``momentum_decay``)) and P ← P μₜ from
    P = 1: θ ← θ − ``lr`` · ((1 − μₜ) / (1 − P) · g + μₜ₊₁ / (1 − P μₜ₊₁) · m) / (√v̂ + ``eps``).
    Memory beyond θ: two tensors and a number per parameter.

    torch keeps P in its default type; here it has that of the parameter, float32 at least. In
    float64 the two are equal to rounding where ``torch.set_default_dtype(torch.float64)`` holds,
    and to that of float32 elsewhere.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own.
        eps: Term added to the denominator.
        weight_decay: Factor of the L2 penalty, added to the gradient, or of the decoupled decay.
        momentum_decay: How fast μ grows from β₁ / 2 to β₁.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        decoupled_weight_decay: Whether θ shrinks by 1 − ``lr`` · ``weight_decay`` instead, as with
            :class:`AdamW`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> NAdam(lr=1e-3)
        NAdam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, \
momentum_decay=0.004, decoupled_weight_decay=False, maximize=False, groups=0)
    """

    flags = InnerLearner.flags | {"decoupled_weight_decay"}

    def __init__(
        self,
        lr: Hyperparameter = 2e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        momentum_decay: Hyperparameter = 4e-3,
        groups: Sequence[Group] = (),
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            lr,
            betas,
            eps,
            weight_decay,
            groups,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the moments as zeros, and the product of the momenta, which is 1."""
        settings = [*self.settings("beta1"), *self.settings("momentum_decay")]
        product = number_slots(parameters, 1.0, settings)
        return super().init_slots(parameters) | {"momentum_product": product}

    @staticmethod
    def _weights(
        slots: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return P after the step, and the weights of g and m in it."""
        beta1, decay = hyperparameters["beta1"], hyperparameters["momentum_decay"]
        present, following = (
            beta1 * (1.0 - 0.5 * 0.96 ** (number * decay)) for number in (step + 1, step + 2)
        )
        product = slots["momentum_product"] * present
        return product, (1.0 - present) / (1.0 - product), following / (1.0 - product * following)

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, its moments and its product of momenta after one step."""
        parameter, gradient = decayed(parameter, gradient, hyperparameters)
        moments = next_moments(gradient, slots, hyperparameters)
        product, first, second = self._weights(slots, hyperparameters, step)
        numerator = first * gradient + second * moments["first_moment"]
        direction = divided(numerator, moments, hyperparameters, step)
        after = parameter - hyperparameters["lr"] * direction
        return after, moments | {"momentum_product": product}

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
        moments = next_moments(gradient, slots, hyperparameters)
        _, first, second = self._weights(slots, hyperparameters, step)
        numerator = first * gradient + second * moments["first_moment"]
        slope = first + second * (1.0 - hyperparameters["beta1"])
        quotient = divided_sensitivity(numerator, slope, gradient, moments, hyperparameters, step)
        return -hyperparameters["lr"] * quotient
