"""How far from θ a central difference is taken: where truncation and rounding are about level."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch

from metatoolkit.state import Tensors
from metatoolkit.stateless.traced_flags import (
    Number,
    choose,
    is_traced,
    larger,
    magnitude,
    quotient,
    smaller,
)


@dataclasses.dataclass(frozen=True)
class Slopes:
    """First-order quantities along v̂ that are known before anything is subtracted.

    Attributes:
        length: Norm of v̂.
        outer: Σ |v_i v̂_i| / ‖v̂‖, how fast the outer loss can change.
        inner: Σ |g_i v̂_i| / ‖v̂‖, how fast the training loss can change.
        along: ⟨g, v̂⟩ / ‖v̂‖, the slope of the training loss.
        size: Norm of θ where v̂ is not zero.
    """

    length: Number
    outer: Number
    inner: Number
    along: Number
    size: Number

    @staticmethod
    def of(parameters: Tensors, gradients: Tensors, outer: Tensors, direction: Tensors) -> Slopes:
        """Return them; one device synchronization.

        Args:
            parameters: θ.
            gradients: Gradient g of the training loss, where it has one.
            outer: Gradient v of the outer loss, likewise.
            direction: v̂, likewise.
        """
        rows = [torch.zeros(5)]
        for name, along in direction.items():
            wide = along.to(torch.promote_types(along.dtype, torch.float32))
            change = wide * gradients[name]
            slope, inner = change.sum(), change.abs_().sum()
            moved = parameters[name] * wide.sign().abs_()
            parts = [
                wide.square().sum(),
                (wide * outer[name]).abs_().sum(),
                inner,
                slope,
                moved.square_().sum(),
            ]
            rows.append(torch.stack([part.double() for part in parts]).cpu())
        sums = torch.stack(rows).sum(0, dtype=torch.float64)
        square, reach, inner, slope, size = sums.unbind() if is_traced() else sums.tolist()
        length = square**0.5
        unit = choose(length == 0, 1.0, length)
        return Slopes(length, reach / unit, inner / unit, slope / unit, size**0.5)

    def radius(self, valid_loss: Number, train_loss: Number, rounding: float) -> Number:
        """Return the radius where truncation and rounding are about level.

        See :func:`balanced_radius`; the slopes are those of all coordinates, added up.

        Args:
            valid_loss: The outer loss.
            train_loss: The training loss.
            rounding: Rounding unit u.
        """
        found = ((valid_loss, self.outer), (train_loss, self.inner))
        return balanced_radius(found, self.size, rounding)


def balanced_radius(
    losses: Sequence[tuple[Number, Number]], size: Number, rounding: float
) -> Number:
    """Return the radius of a central difference where truncation and rounding are about level.

    A function that changes over a length ℓ has a central difference with a truncation error of
    (ε/ℓ)² and a rounding error of u ℓ/ε, with u the rounding unit; they are level at
    ε = u^(1/3) ℓ. For ℓ stands the distance over which its slope would use up a loss, at most
    max(1, ‖θ‖). Unlike ‖θ‖ it knows what θ means to the loss. Below u^(2/3) ‖θ‖ the rounding of θ
    itself would tell.

    Args:
        losses: Losses, each with its slope along the difference.
        size: ‖θ‖.
        rounding: Rounding unit u.
    """
    scale = larger(1.0, size)
    for loss, slope in losses:
        far = quotient(magnitude(loss), slope, scale)
        scale = choose((slope > 0) & (loss != 0), smaller(scale, far), scale)
    return larger(rounding ** (1 / 3) * scale, rounding ** (2 / 3) * size)


def rounding_unit(
    parameters: Tensors, meta: Tensors, coarse: Collection[torch.dtype] = ()
) -> float:
    """Return the rounding unit of a difference of gradients in λ.

    Args:
        parameters: θ.
        meta: λ.
        coarse: Types of less precision in which losses compute.
    """
    types = [*coarse, *(t.dtype for t in (*parameters.values(), *meta.values()))]
    return max(torch.finfo(dtype).eps for dtype in types)
