"""Stochastic gradient descent with momentum, Nesterov momentum and weight decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import Group, Hyperparameter, InnerLearner
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
        dampening: float = 0.0,
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
        values = [momentum, *(group.get("momentum", 0.0) for group in self.groups)]
        self.has_momentum = any(not isinstance(v, int | float) or v != 0 for v in values)
        if nesterov and (not self.has_momentum or dampening != 0):
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
        if not self.has_momentum:
            return {}
        return {"velocity": {name: torch.zeros_like(p) for name, p in parameters.items()}}

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
            step: Number of steps taken before this one.
        """
        decay, momentum = hyperparameters["weight_decay"], hyperparameters["momentum"]
        if not isinstance(decay, int | float) or decay != 0:
            gradient = gradient + decay * parameter
        if not self.has_momentum:
            return parameter - hyperparameters["lr"] * gradient, {}
        if step == 0:
            velocity = momentum * slots["velocity"] + gradient
        else:
            velocity = (
                momentum * slots["velocity"] + (1.0 - hyperparameters["dampening"]) * gradient
            )
        direction = gradient + momentum * velocity if self.nesterov else velocity
        return parameter - hyperparameters["lr"] * direction, {"velocity": velocity}

    def __repr__(self) -> str:
        """Return the call that makes this learner, with the number of groups."""
        values = ", ".join(f"{name}={value}" for name, value in self.hyperparameters.items())
        return f"SGD({values}, nesterov={self.nesterov}, groups={len(self.groups)})"
