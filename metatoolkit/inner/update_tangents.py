"""What an inner learner moves that tells in closed form how its update moves tangents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class UpdateTangents:
    """Derivatives, along n directions in λ, of all that an update of p coordinates reads.

    Attributes:
        parameter: Those of the parameter, (n, p); the learner changes them to those after the step.
        gradient: Those of the gradient, (n, p), which the learner may change.
        slots: Those of the optimizer state by slot name, (n, p), changed likewise.
        slope: Takes the name of a hyper-parameter, and returns its derivatives, (n,), or ``None``
            where it is a constant. To be called for those that the update reads, and no others.
    """

    parameter: Tensor
    gradient: Tensor
    slots: dict[str, Tensor]
    slope: Callable[[str], Tensor | None]


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


def accumulate_outer(tangents: Tensor, slope: Tensor | None, value: Tensor, sign: int = 1) -> None:
    """Add what a product ``factor`` · ``value`` has from the derivative of the factor, in place.

    Args:
        tangents: What is added to, (n, p).
        slope: Derivatives of the factor, (n,), or ``None`` where it is a constant.
        value: What the factor multiplies, (p,).
        sign: 1 or −1, which the product enters with.
    """
    if slope is not None:
        tangents.addr_(slope, value, alpha=sign)
