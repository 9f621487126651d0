"""RMSprop, with momentum and in its centered form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import (
    Group,
    Hyperparameter,
    add_decay,
    add_quotient,
    add_scaled,
    is_used,
)
from metatoolkit.inner.moments import root
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors


@learners.register()
class RMSprop(InnerLearner):
    """The update of ``torch.optim.RMSprop``, step for step, differentiable in all it reads.

    With g the gradient plus ``weight_decay`` · θ: s ← ``alpha`` · s + (1 − ``alpha``) · g², and
    θ ← θ − ``lr`` · g / (√s + ``eps``); centered (Graves 2013, arXiv 1308.0850, equations 38 to
    45), √(s − a²) stands for √s, where a is the running mean of g. With momentum the quotient goes
    into a velocity b ← ``momentum`` · b + g / (√s + ``eps``), and θ ← θ − ``lr`` · b.

    A coordinate whose gradients were all zero has a finite derivative, as with Adam. Where the
    gradient does not change, s − a² is what rounding leaves: it counts as torch.optim counts it (as
    0 where it is negative, which is NaN there), and as a constant of the derivative. Memory beyond
    θ: one tensor per parameter, one more if centered and one more with momentum.

    Args:
        lr: Learning rate.
        alpha: Decay rate of the running means.
        eps: Term added to the denominator.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        momentum: Momentum factor.
        centered: Whether the gradient is divided by an estimate of its standard deviation.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> RMSprop(lr=1e-2, centered=True)
        RMSprop(lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=True, \
maximize=False, groups=0)
    """

    below_one = frozenset({"alpha"})
    flags = InnerLearner.flags | {"centered"}

    def __init__(
        self,
        lr: Hyperparameter = 1e-2,
        alpha: Hyperparameter = 0.99,
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        momentum: Hyperparameter = 0.0,
        centered: bool = False,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
            groups,
        )
        self.has_momentum = any(is_used(value) for value in self.settings("momentum"))

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the running means and the velocity as zeros, as far as there are any."""
        slots = ["square_average"]
        slots += ["gradient_average"] if any(self.settings("centered")) else []
        slots += ["velocity"] if self.has_momentum else []
        return zero_slots(parameters, *slots)

    @staticmethod
    def _averages(
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the running means after the step, √s or √(s − a²), and where that is constant."""
        alpha = hyperparameters["alpha"]
        before = slots["square_average"]
        if isinstance(alpha, Tensor):
            square = alpha * before + (1.0 - alpha) * gradient.square()
        else:
            # As torch.optim rounds it, since s − a² may be nothing but rounding.
            square = torch.addcmul(alpha * before, gradient, gradient, value=1.0 - alpha)
        after = {"square_average": square}
        if not hyperparameters.get("centered"):
            return after, root(square), square == 0
        mean = slots["gradient_average"]
        if isinstance(alpha, Tensor):
            mean = alpha * mean + (1.0 - alpha) * gradient
        else:
            mean = torch.lerp(mean, gradient, 1.0 - alpha)
        after["gradient_average"] = mean
        variance = torch.addcmul(square, mean, mean, value=-1)
        noise = variance <= 4 * torch.finfo(variance.dtype).eps * square
        held = variance.detach().clamp_min(0.0).sqrt()
        return after, torch.where(noise, held, root(variance.masked_fill(noise, 0.0))), noise

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, its running means and its velocity after one step."""
        del step
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        after, length, _ = self._averages(gradient, slots, hyperparameters)
        denominator = length + hyperparameters["eps"]
        rate, momentum = -hyperparameters["lr"], hyperparameters["momentum"]
        if not is_used(momentum):
            return add_quotient(parameter, gradient, denominator, rate), after
        velocity = add_quotient(momentum * slots["velocity"], gradient, denominator, 1.0)
        return add_scaled(parameter, velocity, rate), after | {"velocity": velocity}

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
        del step
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        after, length, held = self._averages(gradient, slots, hyperparameters)
        centered = hyperparameters.get("centered")
        excess = gradient - after["gradient_average"] if centered else gradient
        slope = (1.0 - hyperparameters["alpha"]) * excess
        slope = (slope / length.masked_fill(held, 1.0)).masked_fill(held, 0.0)
        denominator = length + hyperparameters["eps"]
        quotient = 1.0 / denominator - gradient * slope / denominator.square()
        return -hyperparameters["lr"] * quotient
