"""RMSprop, with momentum and in its centered form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metatoolkit.inner.base import InnerLearner, zero_slots
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay, is_used
from metatoolkit.inner.moments import root
from metatoolkit.state import Tensors


class RMSprop(InnerLearner):
    """The update of ``torch.optim.RMSprop``, step for step, differentiable in all it reads.

    With g the gradient plus ``weight_decay`` · θ: s ← ``alpha`` · s + (1 − ``alpha``) · g², and
    θ ← θ − ``lr`` · g / (√s + ``eps``); centered (Graves 2013, arXiv 1308.0850, equations 38 to
    45), √(s − a²) stands for √s, where a is the running mean of g. With momentum the quotient goes
    into a velocity b ← ``momentum`` · b + g / (√s + ``eps``), and θ ← θ − ``lr`` · b.

    A coordinate whose gradients were all zero has a finite derivative, as with Adam. Memory
    beyond θ: one tensor per parameter, one more if centered and one more with momentum.

    Args:
        lr: Learning rate.
        alpha: Decay rate of the running means.
        eps: Term added to the denominator.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        momentum: Momentum factor.
        centered: Whether the gradient is divided by an estimate of its standard deviation.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> RMSprop(lr=1e-2, centered=True)
        RMSprop(lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=True, \
groups=0)
    """

    below_one = frozenset({"alpha"})

    def __init__(
        self,
        lr: Hyperparameter = 1e-2,
        alpha: Hyperparameter = 0.99,
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        momentum: Hyperparameter = 0.0,
        centered: bool = False,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
            },
            groups,
        )
        self.centered = centered
        values = [momentum, *(group.get("momentum", 0.0) for group in self.groups)]
        self.has_momentum = any(is_used(value) for value in values)

    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the running means and the velocity as zeros, as far as there are any.

        Args:
            parameters: Inner parameters by name.
        """
        slots = ["square_average"]
        slots += ["gradient_average"] if self.centered else []
        slots += ["velocity"] if self.has_momentum else []
        return zero_slots(parameters, *slots)

    def _averages(
        self,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the running means after the step, and √s or √(s − a²)."""
        alpha = hyperparameters["alpha"]
        square = alpha * slots["square_average"] + (1.0 - alpha) * gradient.square()
        after = {"square_average": square}
        if self.centered:
            mean = alpha * slots["gradient_average"] + (1.0 - alpha) * gradient
            after["gradient_average"] = mean
            square = square - mean.square()
        return after, root(square)

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, its running means and its velocity after one step.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient, of the same shape.
            slots: Its running means and velocity, each of the same shape.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one; not read.
        """
        del step
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        after, length = self._averages(gradient, slots, hyperparameters)
        direction = gradient / (length + hyperparameters["eps"])
        if self.has_momentum:
            direction = hyperparameters["momentum"] * slots["velocity"] + direction
            after["velocity"] = direction
        return parameter - hyperparameters["lr"] * direction, after

    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g in closed form; see :class:`InnerLearner`.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient, of the same shape.
            slots: Its running means before the step, each of the same shape.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one; not read.
        """
        del step
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        after, length = self._averages(gradient, slots, hyperparameters)
        excess = gradient - after["gradient_average"] if self.centered else gradient
        slope = (1.0 - hyperparameters["alpha"]) * excess
        slope = slope / length.masked_fill(length == 0, 1.0)
        denominator = length + hyperparameters["eps"]
        quotient = 1.0 / denominator - gradient * slope / denominator.square()
        return -hyperparameters["lr"] * quotient

    def options(self) -> dict[str, Any]:
        """Return whether the form is the centered one."""
        return {"centered": self.centered}
