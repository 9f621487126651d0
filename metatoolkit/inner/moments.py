"""Running moments of the gradient, as Adam and AdamW divide one by the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors


class MomentLearner(InnerLearner):
    """What inner learners share that keep the first two moments of the gradient.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own.
        eps: Term added to the denominator.
        weight_decay: Factor of the weight decay.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        flags: Options that are True or False.

    Raises:
        ConfigurationError: A number is out of range.
    """

    below_one = frozenset({"beta1", "beta2"})
    flags = InnerLearner.flags | {"amsgrad"}

    def __init__(
        self,
        lr: Hyperparameter,
        betas: tuple[Hyperparameter, Hyperparameter],
        eps: Hyperparameter,
        weight_decay: Hyperparameter,
        groups: Sequence[Group],
        **flags: bool,
    ) -> None:
        values = {"lr": lr, **split_betas(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(values | flags, with_split_betas(groups))

    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the moments as zeros for each parameter, and their largest with ``amsgrad``.

        Args:
            parameters: Inner parameters by name.
        """
        slots = ["first_moment", "second_moment"]
        if "amsgrad" in self.hyperparameters and any(self.settings("amsgrad")):
            slots.append("largest_second_moment")
        return zero_slots(parameters, *slots)


def split_betas(betas: Any) -> dict[str, Hyperparameter]:
    """Return the two decay rates under names of their own.

    Args:
        betas: A pair.

    Raises:
        ConfigurationError: It is no pair.
    """
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ConfigurationError(
            f"betas is {betas!r}; a pair of two decay rates is needed, for instance (0.9, 0.999)."
        )
    return {"beta1": betas[0], "beta2": betas[1]}


def with_split_betas(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return groups with ``betas`` replaced by the two decay rates.

    Args:
        groups: Groups as the user gave them.
    """
    return [
        {name: value for name, value in group.items() if name != "betas"}
        | (split_betas(group["betas"]) if "betas" in group else {})
        for group in groups
    ]


def root(square: Tensor) -> Tensor:
    """Return the square root, with the derivative 0 instead of ∞ where ``square`` is 0.

    It is for roots of sums of squares, divided into something that vanishes with them.

    Args:
        square: Tensor of any shape.
    """
    zero = square == 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def next_moments(
    gradient: Tensor, slots: dict[str, Tensor], hyperparameters: dict[str, float | Tensor]
) -> dict[str, Tensor]:
    """Return m and v after a step, and with ``amsgrad`` the largest v so far.

    Args:
        gradient: Gradient of one parameter.
        slots: Its moments before the step.
        hyperparameters: Values with ``beta1`` and ``beta2``.
    """
    beta1, beta2 = hyperparameters["beta1"], hyperparameters["beta2"]
    moments = {
        "first_moment": beta1 * slots["first_moment"] + (1.0 - beta1) * gradient,
        "second_moment": beta2 * slots["second_moment"] + (1.0 - beta2) * gradient.square(),
    }
    if hyperparameters.get("amsgrad"):
        # Where both are the same, the derivative is that of the present one.
        present, before = moments["second_moment"], slots["largest_second_moment"]
        moments["largest_second_moment"] = torch.where(present >= before, present, before)
    return moments


def _scale(
    moments: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
) -> tuple[float | Tensor, Tensor, float | Tensor, Tensor]:
    """Return lr / (1 − β₁ᵗ), √v, √(1 − β₂ᵗ) and √v̂ + eps."""
    rate = hyperparameters["lr"] / (1.0 - hyperparameters["beta1"] ** (step + 1))
    correction = (1.0 - hyperparameters["beta2"] ** (step + 1)) ** 0.5
    length = root(moments.get("largest_second_moment", moments["second_moment"]))
    return rate, length, correction, length / correction + hyperparameters["eps"]


def move(
    moments: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
) -> Tensor:
    """Return −``lr`` · m̂ / (√v̂ + ``eps``).

    Args:
        moments: m and v after the step.
        hyperparameters: Values that hold at this step.
        step: Number of steps that the parameter took before this one.
    """
    rate, _, _, denominator = _scale(moments, hyperparameters, step)
    return -rate * (moments["first_moment"] / denominator)


def move_sensitivity(
    gradient: Tensor,
    slots: dict[str, Tensor],
    hyperparameters: dict[str, float | Tensor],
    step: int,
) -> Tensor:
    """Return the derivative of :func:`move` in the gradient, coordinate by coordinate.

    Args:
        gradient: Gradient of one parameter, weight decay included.
        slots: Its moments before the step.
        hyperparameters: Values that hold at this step.
        step: Number of steps that the parameter took before this one.
    """
    moments = next_moments(gradient, slots, hyperparameters)
    rate, length, correction, denominator = _scale(moments, hyperparameters, step)
    # d√v/dg is (1 − β₂) g / √v, which the zero of g makes 0 where v is 0.
    slope = (1.0 - hyperparameters["beta2"]) * gradient / length.masked_fill(length == 0, 1.0)
    if "largest_second_moment" in moments:
        former = moments["second_moment"] < moments["largest_second_moment"]
        slope = slope.masked_fill(former, 0.0)
    first = (1.0 - hyperparameters["beta1"]) / denominator
    second = moments["first_moment"] * slope / (correction * denominator.square())
    return -rate * (first - second)
