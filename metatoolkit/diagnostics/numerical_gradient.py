"""Central differences of a scalar function, with the error that they have themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_POINTS = 8
_LOWEST, _HIGHEST = 3, 5
# The next where most values are the same, for rounding may be coarser than the one before.
_SPACINGS = (1e-6, 1e-4, 1e-2)
_LEAST = 1e-5
_PROBED = 2


@dataclasses.dataclass(frozen=True)
class NumericalGradient:
    """Central differences.

    Attributes:
        values: The differences, a 1-d float64 tensor.
        error: Norm of their own error, as it is estimated.
    """

    values: Tensor
    error: float


def numerical_gradient(
    shifted: Callable[[int, float], float],
    along: Callable[[float], float],
    center: float,
    sizes: Sequence[float],
    guess: Tensor,
    epsilon: float | None,
) -> NumericalGradient:
    """Difference a function along coordinates, by a step that its rounding calls for.

    The rounding error η is measured: differences of a high order over eight points that lie close
    together hold nothing else (Moré and Wild 2011, doi 10.1137/100786125). The step is that of
    central differences of an error η, ε = (η/f)^(1/3), and the error that remains is η over the
    step and what a step of twice the length changes.

    Args:
        shifted: ``(coordinate, shift) -> value`` of the function with one coordinate moved.
        along: ``(shift) -> value`` with all coordinates moved, each by the shift or its negative.
        center: Value of the function where nothing is moved.
        sizes: Absolute values of the coordinates.
        guess: What the gradient is thought to be; tells which coordinates matter most.
        epsilon: Step relative to max(1, size); ``None`` chooses it.

    Returns:
        One difference for each coordinate, and the error. Cost: two evaluations for each
        coordinate, and twelve more, or up to 28 where rounding is coarse.
    """
    noise = 0.0
    for spacing in _SPACINGS:
        near = [along(spacing * (k - _POINTS // 2)) for k in range(_POINTS)]
        noise = _noise(near)
        if len(set(near)) > _POINTS // 2:
            break
    scale = max(abs(center), float(guess.abs().max()))
    tiny = torch.finfo(torch.float64).tiny
    noise = max(noise, torch.finfo(torch.float64).eps * abs(center))
    if epsilon is None:
        epsilon = min(max(_LEAST, (noise / max(scale, tiny)) ** (1 / 3)), 0.05)
    steps = [epsilon * max(1.0, size) for size in sizes]

    def slope(index: int, step: float) -> float:
        return (shifted(index, step) - shifted(index, -step)) / (2 * step)

    values = torch.tensor(
        [slope(index, step) for index, step in enumerate(steps)], dtype=torch.float64
    )
    largest = torch.maximum(values.abs(), guess.abs()).argsort(descending=True)[:_PROBED].tolist()
    wide = torch.tensor([slope(i, 2 * steps[i]) for i in largest], dtype=torch.float64)
    # An error of the second order is three times as much again at twice the step.
    part = float((wide - values[largest]).norm()) / 3
    covered = float(values[largest].norm())
    truncation = part * max(1.0, float(values.norm()) / covered) if covered > 0 else part
    rounding = noise * math.sqrt(sum(1 / step**2 for step in steps))
    return NumericalGradient(values, math.hypot(truncation, rounding))


def _noise(values: Sequence[float]) -> float:
    """Return the standard deviation of the error of values at equal distances."""
    table = torch.tensor(values, dtype=torch.float64)
    found = []
    for order in range(1, _HIGHEST + 1):
        table = table.diff()
        # Independent errors of variance 1 give a difference of the order k one of (2k)! / (k!)².
        factor = math.factorial(2 * order) / math.factorial(order) ** 2
        found.append(float(table.square().mean().sqrt()) / math.sqrt(factor))
    # The function itself, where it bends, leaves less and less.
    return min(found[_LOWEST - 1 :])
