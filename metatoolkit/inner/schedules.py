"""Fixed schedules for the hyper-parameters of an inner learner."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import nn

from metatoolkit.errors import ConfigurationError


def multistep(
    value: float, milestones: Sequence[int], gamma: float = 0.1
) -> Callable[[nn.Module, int], float]:
    """Return a schedule that multiplies a value by ``gamma`` at each milestone.

    Args:
        value: Value before the first milestone.
        milestones: Increasing numbers of inner steps at which the value changes.
        gamma: Factor.

    Returns:
        A function ``(meta, step) -> float`` for any hyper-parameter of an inner learner.
    """
    boundaries = list(milestones)

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        return value * gamma ** bisect_right(boundaries, step)

    return schedule


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
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; at least 1 is needed.")
    if not 0 <= warmup <= 1:
        raise ConfigurationError(f"warmup is {warmup}; a number from 0 to 1 is needed.")
    rising = warmup * steps

    def schedule(meta: nn.Module, step: int) -> float:
        del meta
        if step < rising:
            return value * (step + 1) / (rising + 1)
        return value * max(0.0, (steps - step) / (steps - rising + 1))

    return schedule
