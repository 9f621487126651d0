"""Running moments of the gradient, as Adam and its kin divide one by the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.groups import listed
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_decay, split_pairs
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors

BETAS = {"betas": ("beta1", "beta2")}
"""The decay rates that are given as a pair."""


class MomentLearner(InnerLearner):
    """What inner learners share that keep the first two moments of the gradient.

    Args:
        lr: Learning rate.
        betas: Decay rates β₁ and β₂ of the moments, each a hyper-parameter of its own.
        eps: Term added to the denominator.
        weight_decay: Factor of the weight decay.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets ``betas``,
            or ``beta1`` and ``beta2``.
        others: Further hyper-parameters, and options that are True or False.

    Raises:
        ConfigurationError: A number is out of range.

    Attributes:
        moments: Names of the two moments.
    """

    moments: ClassVar[tuple[str, str]] = ("first_moment", "second_moment")
    below_one = frozenset({"beta1", "beta2"})
    flags = InnerLearner.flags | {"amsgrad"}

    def __init__(
        self,
        lr: Hyperparameter,
        betas: tuple[Hyperparameter, Hyperparameter],
        eps: Hyperparameter,
        weight_decay: Hyperparameter,
        groups: Sequence[Group],
        **others: Hyperparameter,
    ) -> None:
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay} | others
        super().__init__(
            split_pairs(values, BETAS), [split_pairs(g, BETAS) for g in listed(groups)]
        )

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the moments as zeros for each parameter, and their largest with ``amsgrad``."""
        slots = [*self.moments]
        if "amsgrad" in self.hyperparameters and any(self.settings("amsgrad")):
            slots.append("largest_second_moment")
        return zero_slots(parameters, *slots)


def root(square: Tensor) -> Tensor:
    """Return the square root, with the derivative 0 instead of ∞ where ``square`` is 0.

    It is for roots of sums of squares, divided into something that vanishes with them.

    Args:
        square: Tensor of any shape.
    """
    zero = square.eq(0)
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


def decayed(
    parameter: Tensor, gradient: Tensor, hyperparameters: dict[str, float | Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a parameter that shrank, or its gradient with that of the penalty added.

    Args:
        parameter: The parameter before the step.
        gradient: Its gradient.
        hyperparameters: Values with ``decoupled_weight_decay``, which tells one from the other.
    """
    decay = hyperparameters["weight_decay"]
    if hyperparameters["decoupled_weight_decay"]:
        return (1.0 - hyperparameters["lr"] * decay) * parameter, gradient
    return parameter, add_decay(gradient, parameter, decay)


def unbiased_rate(hyperparameters: dict[str, float | Tensor], step: int) -> float | Tensor:
    """Return ``lr`` / (1 − β₁ᵗ), which corrects the bias of m.

    Args:
        hyperparameters: Values with ``lr`` and ``beta1``.
        step: Number of steps that the parameter took before this one.
    """
    return hyperparameters["lr"] / (1.0 - hyperparameters["beta1"] ** (step + 1))


def _lengths(
    moments: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
) -> tuple[Tensor, float | Tensor, Tensor]:
    """Return √v, √(1 − β₂ᵗ) and √v̂ + eps."""
    correction = (1.0 - hyperparameters["beta2"] ** (step + 1)) ** 0.5
    length = root(moments.get("largest_second_moment", moments["second_moment"]))
    return length, correction, length / correction + hyperparameters["eps"]


def divided(
    numerator: Tensor,
    moments: dict[str, Tensor],
    hyperparameters: dict[str, float | Tensor],
    step: int,
) -> Tensor:
    """Return ``numerator`` / (√v̂ + ``eps``).

    Args:
        numerator: What vanishes with the gradients.
        moments: m and v after the step.
        hyperparameters: Values that hold at this step.
        step: Number of steps that the parameter took before this one.
    """
    return numerator / _lengths(moments, hyperparameters, step)[2]


def divided_sensitivity(
    numerator: Tensor,
    numerator_slope: float | Tensor,
    gradient: Tensor,
    moments: dict[str, Tensor],
    hyperparameters: dict[str, float | Tensor],
    step: int,
) -> Tensor:
    """Return the derivative of :func:`divided` in the gradient, coordinate by coordinate.

    Args:
        numerator: What is divided.
        numerator_slope: Its derivative in the gradient.
        gradient: Gradient of one parameter, weight decay included.
        moments: m and v after the step.
        hyperparameters: Values that hold at this step.
        step: Number of steps that the parameter took before this one.
    """
    length, correction, denominator = _lengths(moments, hyperparameters, step)
    # d√v/dg is (1 − β₂) g / √v, which the zero of g makes 0 where v is 0.
    slope = (1.0 - hyperparameters["beta2"]) * gradient / length.masked_fill(length == 0, 1.0)
    if "largest_second_moment" in moments:
        former = moments["second_moment"] < moments["largest_second_moment"]
        slope = slope.masked_fill(former, 0.0)
    second = numerator * slope / (correction * denominator.square())
    return numerator_slope / denominator - second


def move(
    moments: dict[str, Tensor], hyperparameters: dict[str, float | Tensor], step: int
) -> Tensor:
    """Return −``lr`` · m̂ / (√v̂ + ``eps``).

    Args:
        moments: m and v after the step.
        hyperparameters: Values that hold at this step.
        step: Number of steps that the parameter took before this one.
    """
    rate = unbiased_rate(hyperparameters, step)
    return -rate * divided(moments["first_moment"], moments, hyperparameters, step)


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
    slope = divided_sensitivity(
        moments["first_moment"],
        1.0 - hyperparameters["beta1"],
        gradient,
        moments,
        hyperparameters,
        step,
    )
    return -unbiased_rate(hyperparameters, step) * slope
