"""Stochastic gradient descent with momentum, Nesterov momentum and weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner, zero_slots
from metatoolkit.inner.hyperparameters import (
    Group,
    Hyperparameter,
    add_decay,
    add_scaled,
    is_used,
)
from metatoolkit.state import Tensors


class SGD(InnerLearner):
    """The update of ``torch.optim.SGD``, step for step, differentiable in all it reads.

    With g the gradient plus ``weight_decay`` · θ: v ← ``momentum`` · v + (1 − ``dampening``) · g
    (v ← g at the first step), and θ ← θ − ``lr`` · v, or θ − ``lr`` · (g + ``momentum`` · v) with
    Nesterov momentum. Memory beyond θ: one tensor per parameter with momentum, none without.

    Args:
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        nesterov: Whether the momentum is Nesterov's.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.

    Raises:
        ConfigurationError: A number is out of range, or Nesterov momentum lacks its momentum.

    Example:
        >>> SGD(lr=0.1, momentum=0.9, groups=[{"parameters": ["*.bias"], "weight_decay": 0.0}])
        SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, groups=1)
    """

    def __init__(
        self,
        lr: Hyperparameter,
        momentum: Hyperparameter = 0.0,
        dampening: Hyperparameter = 0.0,
        weight_decay: Hyperparameter = 0.0,
        nesterov: bool = False,
        groups: Sequence[Group] = (),
    ) -> None:
        hyperparameters: dict[str, Hyperparameter] = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
        }
        super().__init__(hyperparameters, groups)

        def used(name: str) -> bool:
            values = [hyperparameters[name], *(group.get(name, 0.0) for group in self.groups)]
            return any(is_used(value) for value in values)

        self.has_momentum = used("momentum")
        if nesterov and (not self.has_momentum or used("dampening")):
            raise ConfigurationError(
                f"nesterov=True with momentum={momentum} and dampening={dampening}; Nesterov "
                "momentum needs a momentum above 0 and a dampening of 0."
            )
        self.nesterov = nesterov

    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return a velocity of zeros for each parameter, or nothing without momentum.

        Args:
            parameters: Inner parameters by name.
        """
        return zero_slots(parameters, "velocity") if self.has_momentum else {}

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its velocity after one step.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient, of the same shape.
            slots: Its velocity, where there is momentum.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one.
        """
        momentum = hyperparameters["momentum"]
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        if not self.has_momentum:
            return add_scaled(parameter, gradient, -hyperparameters["lr"]), {}
        weight = self._weight(hyperparameters, step)
        weighted = weight * gradient if is_used(weight - 1.0) else gradient
        velocity = add_scaled(weighted, slots["velocity"], momentum)
        direction = add_scaled(gradient, velocity, momentum) if self.nesterov else velocity
        return add_scaled(parameter, direction, -hyperparameters["lr"]), {"velocity": velocity}

    @staticmethod
    def _weight(hyperparameters: dict[str, float | Tensor], step: int) -> float | Tensor:
        """Return the factor of the gradient in the velocity."""
        return 1.0 if step == 0 else 1.0 - hyperparameters["dampening"]

    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g, which is the same for all coordinates; see :class:`InnerLearner`.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient; not read.
            slots: Its velocity; not read.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one.
        """
        del gradient, slots
        factor: float | Tensor = 1.0
        if self.has_momentum:
            factor = self._weight(hyperparameters, step)
            if self.nesterov:
                factor = 1.0 + hyperparameters["momentum"] * factor
        slope = parameter.new_ones(()) * (-hyperparameters["lr"] * factor)
        return slope.to(parameter.dtype)

    def options(self) -> dict[str, Any]:
        """Return whether the momentum is Nesterov's."""
        return {"nesterov": self.nesterov}
