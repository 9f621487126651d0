"""Adadelta."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay, add_scaled
from metatoolkit.inner.moments import root
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors


@learners.register()
class Adadelta(InnerLearner):
    """The update of ``torch.optim.Adadelta``, step for step, differentiable in all it reads.

    Zeiler 2012, arXiv 1212.5701, algorithm 1. With g the gradient plus ``weight_decay`` · θ:
    s ← ``rho`` · s + (1 − ``rho``) · g², d = √(a + ``eps``) / √(s + ``eps``) · g, a ← ``rho`` · a +
    (1 − ``rho``) · d², and θ ← θ − ``lr`` · d. Memory beyond θ: two tensors per parameter.

    Args:
        lr: Factor of the step.
        rho: Decay rate of the running means, at most 1.
        eps: Term added under both roots. With 0 nothing moves, and a coordinate whose gradients
            were all zero becomes NaN, as in torch.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Adadelta(rho=0.95)
        Adadelta(lr=1.0, rho=0.95, eps=1e-06, weight_decay=0.0, maximize=False, groups=0)
    """

    def __init__(
        self,
        lr: Hyperparameter = 1.0,
        rho: Hyperparameter = 0.9,
        eps: Hyperparameter = 1e-6,
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        values = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(values | {"maximize": maximize}, groups)
        for value in self.settings("rho"):
            if isinstance(value, int | float) and value > 1:
                raise ConfigurationError(f"rho is {value}; accepted: a number from 0 to 1.")

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the running means of the squares of gradient and step as zeros."""
        return zero_slots(parameters, "square_average", "step_square_average")

    @staticmethod
    def _roots(
        gradient: Tensor, slots: dict[str, Tensor], hyperparameters: dict[str, float | Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return s after the step, √(a + eps) and √(s + eps)."""
        rho, eps = hyperparameters["rho"], hyperparameters["eps"]
        square = rho * slots["square_average"] + (1.0 - rho) * gradient.square()
        return square, root(slots["step_square_average"] + eps), root(square + eps)

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its running means after one step."""
        del step
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        square, numerator, denominator = self._roots(gradient, slots, hyperparameters)
        direction = numerator / denominator * gradient
        rho = hyperparameters["rho"]
        moved = rho * slots["step_square_average"] + (1.0 - rho) * direction.square()
        after = {"square_average": square, "step_square_average": moved}
        return add_scaled(parameter, direction, -hyperparameters["lr"]), after

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
        _, numerator, denominator = self._roots(gradient, slots, hyperparameters)
        bend = (1.0 - hyperparameters["rho"]) * (gradient / denominator).square()
        return -hyperparameters["lr"] * numerator / denominator * (1.0 - bend)
