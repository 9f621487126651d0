"""Schedule: λ is a hyper-parameter of the inner learner over the course of a horizon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters.registry import modules

Interpolation = Literal["constant", "linear", "cosine"]
Scale = Literal["linear", "log"]


@modules.register()
class Schedule(nn.Module):
    """A hyper-parameter that changes along the inner steps, shared by contiguous ones.

    Of T steps, those of the same ⌊N t / T⌋ share one of N learnable values, as in forward-mode
    differentiation with sharing (Micaelli & Storkey 2021, arXiv 2007.07869): few meta-parameters
    for a long horizon, each with a derivative that sums up that of all its steps. Interpolated, the
    N values are knots, the first at step 0 and the last at step T − 1, with straight lines or half
    waves of a cosine between them. On the log scale the lines are straight in the logarithm.

    An inner learner takes it for any hyper-parameter, also in a group of parameters:
    ``lr=Schedule.at`` where it is the whole of ``meta``, ``lr=lambda meta, step:
    meta["lr"].at(step)`` where it is a part. Cost: no pass; N numbers.

    Args:
        value: First value of all, or a sequence of N.
        horizon: Number of inner steps T.
        shares: N.
        interpolation: ``"constant"``, ``"linear"`` or ``"cosine"``.
        scale: ``"linear"``, or ``"log"`` for values that stay above 0: their logarithms are
            learned.
        bounds: Lowest and highest value, between which a sigmoid of what is learned keeps all
            others; ``None`` for no bounds.

    Raises:
        ConfigurationError: There are no steps, or fewer than shares; the bounds are turned round;
            a value does not lie between them or, on the log scale, above 0.

    Attributes:
        raw: What is learned, (N,): the values themselves without bounds on the linear scale.

    Example:
        >>> schedule = Schedule([0.4, 0.2, 0.1], horizon=7, shares=3)
        >>> [round(value, 2) for value in schedule.values().tolist()]
        [0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
        >>> import metatoolkit as mt
        >>> inner = mt.inner.SGD(lr=Schedule.at, momentum=0.9)
    """

    def __init__(
        self,
        value: float | Sequence[float],
        horizon: int,
        shares: int = 1,
        interpolation: Interpolation = "constant",
        scale: Scale = "linear",
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        choices = (("interpolation", interpolation, Interpolation), ("scale", scale, Scale))
        for name, given, accepted in choices:
            if given not in get_args(accepted):
                words = ", ".join(map(repr, get_args(accepted)))
                raise ConfigurationError(f"{name} is {given!r}; accepted: {words}.")
        if horizon < 1:
            raise ConfigurationError(f"horizon is {horizon}; at least 1 inner step is needed.")
        fewest = 1 if interpolation == "constant" else 2
        if not fewest <= shares <= horizon:
            raise ConfigurationError(
                f"shares is {shares} with interpolation={interpolation!r}; a number from {fewest} "
                f"to horizon={horizon} is needed."
            )
        first = [value] * shares if isinstance(value, int | float) else list(value)
        if len(first) != shares:
            raise ConfigurationError(
                f"value has {len(first)} numbers; one is needed, or shares={shares}."
            )
        self.horizon, self.shares = horizon, shares
        self.interpolation, self.scale = interpolation, scale
        self._ends = None if bounds is None else self._checked(bounds)
        self.raw = nn.Parameter(torch.tensor([self._raw(number) for number in first]))

    def _checked(self, bounds: Sequence[float]) -> tuple[float, float]:
        """Return the bounds on the scale."""
        if len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise ConfigurationError(
                f"bounds is {bounds!r}; two finite numbers are needed, the lower one first, or "
                "None."
            )
        if self.scale == "log" and not bounds[0] > 0:
            raise ConfigurationError(
                f"bounds is {bounds!r} with scale='log', which has no 0; bounds above 0 are needed."
            )
        low, high = (math.log(end) if self.scale == "log" else float(end) for end in bounds)
        return low, high

    def _raw(self, value: float) -> float:
        """Return what is learned for a value."""
        if not math.isfinite(value) or (self.scale == "log" and not value > 0):
            above = " above 0" if self.scale == "log" else ""
            raise ConfigurationError(
                f"value is {value} with scale={self.scale!r}; a finite number{above} is needed."
            )
        level = math.log(value) if self.scale == "log" else float(value)
        if self._ends is None:
            return level
        low, high = self._ends
        if not low < level < high:
            raise ConfigurationError(
                f"value is {value}; a number between the bounds is needed, which a sigmoid reaches "
                "at infinity alone. Widen them, or leave them to an optimizer that keeps bounds."
            )
        return math.log((level - low) / (high - level))

    def _level(self, knot: int) -> Tensor:
        """Return one value on the scale, 0-d."""
        raw = self.raw[knot]
        if self._ends is None:
            return raw
        low, high = self._ends
        return low + (high - low) * raw.sigmoid()

    def at(self, step: int) -> Tensor:
        """Return the value at an inner step, 0-d.

        Args:
            step: Number of inner steps taken before.

        Raises:
            ConfigurationError: The step lies beyond the horizon.
        """
        if not 0 <= step < self.horizon:
            raise ConfigurationError(
                f"inner step {step + 1} has no value: the schedule is for horizon={self.horizon} "
                "steps. Take no more, start θ over (MetaTrainer(reset_every=...)), or make a "
                "schedule with a longer horizon."
            )
        if self.interpolation == "constant":
            level = self._level(self.shares * step // self.horizon)
        else:
            # In whole numbers, so that a knot is met exactly.
            knot, rest = divmod((self.shares - 1) * step, self.horizon - 1)
            level = self._level(knot)
            if rest:
                way = rest / (self.horizon - 1)
                if self.interpolation == "cosine":
                    way = (1.0 - math.cos(math.pi * way)) / 2.0
                level = torch.lerp(level, self._level(knot + 1), way)
        return level.exp() if self.scale == "log" else level

    def values(self) -> Tensor:
        """Return the values at all steps, (T,), detached."""
        with torch.no_grad():
            return torch.stack([self.at(step) for step in range(self.horizon)])
