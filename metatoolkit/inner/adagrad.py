"""Adagrad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import (
    Group,
    Hyperparameter,
    add_decay,
    add_quotient,
)
from metatoolkit.inner.moments import root
from metatoolkit.inner.registry import learners
from metatoolkit.state import Tensors


@learners.register()
class Adagrad(InnerLearner):
    """The update of ``torch.optim.Adagrad``, step for step, differentiable in all it reads.

    Duchi et al. 2011, JMLR 12, section 1.3. With g the gradient plus ``weight_decay`` · θ and t the
    number of the step from 1: s ← s + g², and θ ← θ − ``lr`` / (1 + (t − 1) ``lr_decay``) · g /
    (√s + ``eps``). A coordinate whose gradients were all zero has a finite derivative, as with
    Adam. Memory beyond θ: one tensor per parameter.

    Args:
        lr: Learning rate.
        lr_decay: Decay of the learning rate with the steps of each parameter.
        weight_decay: Factor of the L2 penalty, added to the gradient.
        initial_accumulator_value: s before the first step, the same for all parameters.
        eps: Term added to the denominator.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Adagrad(lr=1e-2)
        Adagrad(lr=0.01, lr_decay=0.0, weight_decay=0.0, eps=1e-10, maximize=False, \
initial_accumulator_value=0.0, groups=0)
    """

    def __init__(
        self,
        lr: Hyperparameter = 1e-2,
        lr_decay: Hyperparameter = 0.0,
        weight_decay: Hyperparameter = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Hyperparameter = 1e-10,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        values = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        super().__init__(values | {"maximize": maximize}, groups)
        start = initial_accumulator_value
        if not isinstance(start, int | float) or not 0 <= start < math.inf:
            raise ConfigurationError(
                f"initial_accumulator_value is {start!r}; accepted: a finite number of at least 0, "
                "since it is a part of the initial state and not of a step."
            )
        self.initial_accumulator_value = start

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the sum of squares before the first step for each parameter."""
        start = self.initial_accumulator_value
        return {
            "square_sum": {
                name: torch.full_like(p, complex(start, start) if p.is_complex() else start)
                for name, p in parameters.items()
            }
        }

    @staticmethod
    def _rate(hyperparameters: dict[str, float | Tensor], step: int) -> float | Tensor:
        return hyperparameters["lr"] / (1.0 + step * hyperparameters["lr_decay"])

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its sum of squares after one step."""
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        total = torch.addcmul(slots["square_sum"], gradient, gradient)
        denominator = root(total) + hyperparameters["eps"]
        rate = self._rate(hyperparameters, step)
        return add_quotient(parameter, gradient, denominator, -rate), {"square_sum": total}

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
        gradient = add_decay(gradient, parameter, hyperparameters["weight_decay"])
        length = root(slots["square_sum"] + gradient.square())
        denominator = length + hyperparameters["eps"]
        slope = gradient / length.masked_fill(length == 0, 1.0)
        quotient = 1.0 / denominator - gradient * slope / denominator.square()
        return -self._rate(hyperparameters, step) * quotient

    @override
    def options(self) -> dict[str, Any]:
        """Return the sum of squares before the first step."""
        return {"initial_accumulator_value": self.initial_accumulator_value}
