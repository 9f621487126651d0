"""Stochastic gradient descent with momentum, Nesterov momentum and weight decay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.bundles import takes_bundles
from metatoolkit.inner.hyperparameters import (
    Group,
    Hyperparameter,
    add_decay,
    add_scaled,
    is_used,
)
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.inner.update_tangents import (
    UpdateTangents,
    accumulate,
    accumulate_outer,
)
from metatoolkit.state import Tensors


@learners.register()
class SGD(InnerLearner):
    """The update of ``torch.optim.SGD``, step for step, differentiable in all it reads.

    With g the gradient plus ``weight_decay`` · θ: v ← ``momentum`` · v + (1 − ``dampening``) · g
    (v ← g at the first step), and θ ← θ − ``lr`` · v, or θ − ``lr`` · (g + ``momentum`` · v) with
    Nesterov momentum. Where the momentum is the number 0, there is no velocity and no dampening; a
    tensor that is 0 counts as any other value. Memory beyond θ: one tensor per parameter with
    momentum, none without.

    Args:
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        nesterov: Whether the momentum is Nesterov's.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range, or Nesterov momentum lacks its momentum.

    Example:
        >>> SGD(lr=0.1, momentum=0.9, groups=[{"params": ["*.bias"], "weight_decay": 0.0}])
        SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, \
groups=1)
    """

    flags = InnerLearner.flags | {"nesterov"}
    linear_in_gradient = True

    def __init__(
        self,
        lr: Hyperparameter,
        momentum: Hyperparameter = 0.0,
        dampening: Hyperparameter = 0.0,
        weight_decay: Hyperparameter = 0.0,
        nesterov: bool = False,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        hyperparameters: dict[str, Hyperparameter] = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(hyperparameters, groups)
        self.has_momentum = any(is_used(value) for value in self.settings("momentum"))
        self.nesterov = nesterov
        triples = zip(
            *(self.settings(name) for name in ("nesterov", "momentum", "dampening")), strict=True
        )
        if (any(self.settings("nesterov")) and not self.has_momentum) or any(
            accelerated and is_used(factor) and is_used(dampened)
            for accelerated, factor, dampened in triples
        ):
            raise ConfigurationError(
                f"nesterov=True with momentum={momentum} and dampening={dampening}; Nesterov "
                "momentum needs a momentum above 0 and a dampening of 0, in each group that has it."
            )
        self._scheduled = any(callable(value) for value in self.settings("momentum"))

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return a velocity of zeros for each parameter, or nothing without momentum."""
        return zero_slots(parameters, "velocity") if self.has_momentum else {}

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
        """Return the parameter and its velocity after one step."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        direction, moved = self._direction(gradient, slots, hyperparameters, step)
        return add_scaled(parameter, direction, -hyperparameters["lr"]), moved

    def _direction(
        self,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what ``lr`` multiplies, and the velocity after the step, if there is one."""
        momentum = hyperparameters["momentum"]
        if not is_used(momentum):
            self._refuse_late_momentum(hyperparameters, step)
            return gradient, {}
        weight = self._weight(hyperparameters, step)
        weighted = weight * gradient if is_used(weight - 1.0) else gradient
        velocity = add_scaled(weighted, slots["velocity"], momentum)
        nesterov = hyperparameters.get("nesterov")
        direction = add_scaled(gradient, velocity, momentum) if nesterov else velocity
        return direction, {"velocity": velocity}

    def move_tangents(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
        tangents: UpdateTangents,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step without a graph, and move derivatives along directions in λ, in place.

        With dots for derivatives, m the momentum, d the weight decay and w what weights the
        gradient: ġ ← ġ + d θ̇ + ḋ θ, v̇ ← m v̇ + ṁ v + w ġ + ẇ g, and θ̇ ← θ̇ − ``lr`` v̇ − l̇r v⁺,
        with ġ + m v̇ + ṁ v⁺ in the place of v̇ for Nesterov momentum. Cost: no pass.

        Args:
            parameter: Some coordinates of θ before the step, (p,).
            gradient: Gradient there, (p,).
            slots: Optimizer state before the step by slot name, (p,).
            hyperparameters: Values that hold for these coordinates, numbers or 0-d tensors without
                a graph.
            step: Number of steps that they took before this one.
            tangents: Derivatives of all these.

        Returns:
            What :meth:`update` does.
        """
        momentum, decay = hyperparameters["momentum"], hyperparameters["weight_decay"]
        rate, slope, pushed = -hyperparameters["lr"], tangents.slope, tangents.gradient
        if is_used(decay):
            accumulate(pushed, tangents.parameter, decay)
            accumulate_outer(pushed, slope("weight_decay"), parameter)
            gradient = add_decay(gradient, parameter, decay)
        direction, moved = self._direction(gradient, slots, hyperparameters, step)
        if is_used(momentum):
            speed, turned = tangents.slots["velocity"], slope("momentum")
            speed.mul_(momentum)
            accumulate_outer(speed, turned, slots["velocity"])
            accumulate(speed, pushed, self._weight(hyperparameters, step))
            if step > 0 and is_used(hyperparameters["dampening"]):
                accumulate_outer(speed, slope("dampening"), gradient, -1)
            if hyperparameters.get("nesterov"):
                accumulate(pushed, speed, momentum)
                accumulate_outer(pushed, turned, moved["velocity"])
            else:
                pushed = speed
        accumulate(tangents.parameter, pushed, rate)
        accumulate_outer(tangents.parameter, slope("lr"), direction, -1)
        return add_scaled(parameter, direction, rate), moved

    def _refuse_late_momentum(self, hyperparameters: dict[str, float | Tensor], step: int) -> None:
        """Raise where a schedule starts a dampened momentum later than at the first step.

        Raises:
            UnsupportedError: It may: the first velocity is not dampened, and only a parameter's
                first step is known to be that of its velocity.
        """
        if step == 0 and self._scheduled and is_used(hyperparameters["dampening"]):
            raise UnsupportedError(
                "momentum is a function that is 0 at the first step, with a dampening: the first "
                "velocity, which is not dampened, would come later. Start from a momentum above "
                "0, such as 1e-12, or set the dampening to 0 (in a group without momentum, too)."
            )

    @staticmethod
    def _weight(hyperparameters: dict[str, float | Tensor], step: int) -> float | Tensor:
        """Return the factor of the gradient in the velocity."""
        return 1.0 if step == 0 else 1.0 - hyperparameters["dampening"]

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g, which is the same for all coordinates; see :class:`InnerLearner`."""
        del gradient, slots
        factor: float | Tensor = 1.0
        if is_used(hyperparameters["momentum"]):
            factor = self._weight(hyperparameters, step)
            if hyperparameters.get("nesterov"):
                factor = 1.0 + hyperparameters["momentum"] * factor
        slope = parameter.new_ones(()) * (-hyperparameters["lr"] * factor)
        return slope.to(parameter.dtype)
