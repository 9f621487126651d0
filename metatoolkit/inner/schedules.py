"""Fixed schedules for the hyper-parameters of an inner learner."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import nn


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
