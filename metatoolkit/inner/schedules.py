"""Fixed schedules for the hyper-parameters of an inner learner."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.registry import schedules


@schedules.register()
def multistep(
    value: float, milestones: Sequence[int], gamma: float = 0.1
) -> Callable[[nn.Module, int], float]:
    """Return a schedule that multiplies a value by ``gamma`` at each milestone.

    Args:
        value: Value before the first milestone.
        milestones: Numbers of inner steps at which the value changes, in any order.
        gamma: Factor.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.

    Example:
        >>> [multistep(1.0, milestones=[2, 4])(nn.Identity(), step) for step in (1, 2, 4)]
        [1.0, 0.1, 0.010000000000000002]
    """
    boundaries = sorted(milestones)

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        return value * gamma ** bisect_right(boundaries, step)

    return schedule


@schedules.register()
def warmup_linear(
    value: float, steps: int, warmup: float = 0.1
) -> Callable[[nn.Module, int], float]:
    """Return a schedule that rises linearly to a value and falls linearly to 0.

    Args:
        value: Value at the peak.
        steps: Number of inner steps in all; from there on it is 0.
        warmup: Fraction of them in which it rises, from 0 to 1.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> rate = warmup_linear(1.0, steps=4, warmup=0.25)
        >>> [rate(nn.Identity(), step) for step in range(5)]
        [0.5, 0.75, 0.5, 0.25, 0.0]
    """
    _check_steps(steps)
    if not 0 <= warmup <= 1:
        raise ConfigurationError(f"warmup is {warmup}; a number from 0 to 1 is needed.")
    rising = warmup * steps

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        if step < rising:
            return value * (step + 1) / (rising + 1)
        return value * max(0.0, (steps - step) / (steps - rising + 1))

    return schedule


@schedules.register()
def cosine(value: float, steps: int, minimum: float = 0.0) -> Callable[[nn.Module, int], float]:
    """Return a schedule that falls by half a cosine wave, as torch's ``CosineAnnealingLR``.

    Args:
        value: Value at the first step.
        steps: Number of inner steps after which it is ``minimum``, and stays so.
        minimum: Last value.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> [round(cosine(1.0, steps=4)(nn.Identity(), step), 3) for step in (0, 2, 4)]
        [1.0, 0.5, 0.0]
    """
    _check_steps(steps)

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        share = min(step, steps) / steps
        return minimum + (value - minimum) * (1.0 + math.cos(math.pi * share)) / 2.0

    return schedule


@schedules.register()
def exponential(value: float, gamma: float) -> Callable[[nn.Module, int], float]:
    """Return a schedule that multiplies a value by ``gamma`` at each step, as ``ExponentialLR``.

    Args:
        value: Value at the first step.
        gamma: Factor, above 0.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.

    Raises:
        ConfigurationError: ``gamma`` is not above 0.

    Example:
        >>> [exponential(1.0, gamma=0.5)(nn.Identity(), step) for step in (0, 1, 2)]
        [1.0, 0.5, 0.25]
    """
    if not gamma > 0:
        raise ConfigurationError(f"gamma is {gamma}; a number above 0 is needed.")

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        return value * gamma**step

    return schedule


@schedules.register()
def polynomial(
    value: float, steps: int, power: float = 1.0, minimum: float = 0.0
) -> Callable[[nn.Module, int], float]:
    """Return a schedule that falls as a power of the steps left, as torch's ``PolynomialLR``.

    Args:
        value: Value at the first step.
        steps: Number of inner steps after which it is ``minimum``, and stays so.
        power: Exponent, above 0.
        minimum: Last value, 0 in torch.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> [polynomial(1.0, steps=4, power=2.0)(nn.Identity(), step) for step in (0, 2, 4)]
        [1.0, 0.25, 0.0]
    """
    _check_steps(steps)
    if not power > 0:
        raise ConfigurationError(f"power is {power}; a number above 0 is needed.")

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        left = (1.0 - min(step, steps) / steps) ** power
        return minimum + (value - minimum) * left

    return schedule


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; at least 1 is needed.")
