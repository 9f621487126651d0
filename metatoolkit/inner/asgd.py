"""ASGD: gradient descent with a falling learning rate and an average of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay, add_scaled
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import number_slots, zero_slots
from metatoolkit.state import Tensors


@learners.register()
class ASGD(InnerLearner):
    """The update of ``torch.optim.ASGD``, step for step, differentiable in all it reads.

    Polyak and Juditsky 1992, SIAM J. Control Optim. 30(4). With g the gradient plus
    ``weight_decay`` · θ and t the number of the step from 1: θ ← (1 − ``lambd`` · η) θ − η g. The
    rate η is ``lr`` at the first step, and for the next step ``lr`` / (1 + ``lambd`` · ``lr`` ·
    t)^``alpha``, with the ``lr`` of the present one. The average a ← a + (θ − a) / max(1, t − 1 −
    ``t0``) does not enter the steps; it is ``state.optimizer["average"]``. Memory beyond θ: a
    tensor and a number per parameter.

    torch keeps η in its default type; here it has that of the parameter, float32 at least. In
    float64 the two are equal to rounding where ``torch.set_default_dtype(torch.float64)`` holds,
    and to that of float32 elsewhere.

    Args:
        lr: Learning rate.
        lambd: Factor of the decay of θ and of η.
        alpha: Exponent of the decay of η.
        t0: Number of steps after which the average begins; it is θ before.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> ASGD(lr=0.1, t0=100)
        ASGD(lr=0.1, lambd=0.0001, alpha=0.75, t0=100, weight_decay=0.0, maximize=False, groups=0)
    """

    def __init__(
        self,
        lr: Hyperparameter = 1e-2,
        lambd: Hyperparameter = 1e-4,
        alpha: Hyperparameter = 0.75,
        t0: Hyperparameter = 1e6,
        weight_decay: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        values = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
        super().__init__(values | {"maximize": maximize}, groups)

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the average and the rate as zeros, which the first step does not read."""
        names = ("lr", "lambd", "alpha")
        settings = [setting for name in names for setting in self.settings(name)]
        rates = number_slots(parameters, 0.0, settings)
        return zero_slots(parameters, "average") | {"rate": rates}

    @staticmethod
    def _rate(
        slots: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
    ) -> float | Tensor:
        return hyperparameters["lr"] if step == 0 else slots["rate"]

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, its average and its next rate after one step."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        lr, lambd, start = (hyperparameters[name] for name in ("lr", "lambd", "t0"))
        rate = self._rate(slots, hyperparameters, step)
        moved = add_scaled((1.0 - lambd * rate) * parameter, gradient, -rate)
        elapsed = step - start
        count = elapsed.clamp(min=1.0) if isinstance(elapsed, Tensor) else max(1, elapsed)
        # From θ, so that the average is θ exactly where the count is 1.
        average = add_scaled(moved, moved - slots["average"], 1.0 / count - 1.0)
        following = lr / (1.0 + lambd * lr * (step + 1)) ** hyperparameters["alpha"]
        rates = torch.zeros_like(slots["rate"]) + following
        return moved, {"average": average, "rate": rates}

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g, which is −η; see :class:`InnerLearner`."""
        del gradient
        slope = parameter.new_ones(()) * -self._rate(slots, hyperparameters, step)
        return slope.to(parameter.dtype)
