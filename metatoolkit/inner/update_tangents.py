"""What an inner learner moves that tells in closed form how its update moves tangents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Slope:
    """Derivatives of a hyper-parameter along n directions, zero before some and after others.

    Attributes:
        begin: First direction along which it may change.
        values: Derivatives along that one and those that follow on it.
    """

    begin: int
    values: Tensor


@dataclasses.dataclass(frozen=True)
class UpdateTangents:
    """Derivatives, along n directions in λ, of all that an update of p coordinates reads.

    Attributes:
        parameter: Those of the parameter, (n, p); the learner changes them to those after the step.
        gradient: Those of the gradient, (n, p), which the learner may change.
        slots: Those of the optimizer state by slot name, (n, p), changed likewise.
        slope: Takes the name of a hyper-parameter, and returns its derivatives, or ``None`` where
            it is a constant. To be called for those that the update reads, and no others.
    """

    parameter: Tensor
    gradient: Tensor
    slots: dict[str, Tensor]
    slope: Callable[[str], Slope | None]


def accumulate(tangents: Tensor, others: Tensor, factor: float | Tensor) -> None:
    """Add a multiple of tangents to others, in place.

    Args:
        tangents: What is added to, (n, p).
        others: What is added, (n, p).
        factor: A number, or a 0-d tensor without a graph.
    """
    if isinstance(factor, Tensor):
        tangents.addcmul_(others, factor.to(tangents.dtype))
    else:
        tangents.add_(others, alpha=factor)


def accumulate_outer(tangents: Tensor, slope: Slope | None, value: Tensor, sign: int = 1) -> None:
    """Add what a product ``factor`` · ``value`` has from the derivative of the factor, in place.

    Args:
        tangents: What is added to, (n, p).
        slope: Derivatives of the factor, or ``None`` where it is a constant.
        value: What the factor multiplies, (p,).
        sign: 1 or −1, which the product enters with.
    """
    if slope is not None:
        end = slope.begin + len(slope.values)
        tangents[slope.begin : end].addr_(slope.values, value, alpha=sign)
