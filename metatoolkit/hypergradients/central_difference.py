"""A mixed second derivative by a central difference: its radius, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from metatoolkit.errors import AccuracyWarning, PrecisionError, UnsupportedError
from metatoolkit.hypergradients.difference_radius import Slopes
from metatoolkit.hypergradients.products import Adjoint, add_adjoints, norm
from metatoolkit.state import Tensors
from metatoolkit.stateless.traced_flags import (
    Number,
    choose,
    holds,
    larger,
    magnitude,
    number,
    quotient,
)

Evaluate = Callable[[Tensors], tuple[Tensor, Adjoint]]
"""Function of θ that returns the training loss, detached, and its gradient in λ."""

_TOLERANCE = 0.1
_RATIO = 4.0
_MORE_PAIRS = 4


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The difference of two evaluations at θ ± ε v̂/‖v̂‖, divided.

    Attributes:
        radius: ε.
        product: The central difference, the product wanted.
        bend: Norm of the difference of the two one-sided differences, halved, over that of the
            product: what the curvature does in first order, and rounding.
        rise: Slope of the training loss by its difference.
        sag: Half the second difference of the training loss over ε.
        unit: Half of ‖v̂‖/ε, by which the difference was multiplied.
        lost: Whether the two gradients in λ are equal to the bit, by rounding or as they depend
            on no θ.
    """

    radius: Number
    product: Adjoint
    bend: Number
    rise: Number
    sag: Number
    unit: Number
    lost: bool | Tensor


class CentralDifference:
    """∂²L_T/∂λ∂θ · v̂ by first-order passes at θ ± ε v̂/‖v̂‖.

    Args:
        evaluate: Loss and gradient in λ at other parameters, of the same masks and constants.
        parameters: θ.
        direction: v̂ by parameter name.
        slopes: What is known of first order.
        base: Loss and gradient in λ at θ.
        rest: The other parts of the hypergradient.
        rounding: Largest rounding unit of what the loss computes with.

    Attributes:
        pairs: Number of differences that were taken, two passes each.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        parameters: Tensors,
        direction: Tensors,
        slopes: Slopes,
        base: tuple[Tensor, Adjoint],
        rest: Sequence[Tensor | None],
        rounding: float,
    ) -> None:
        self._evaluate = evaluate
        self._parameters = parameters
        self._direction = direction
        self._slopes = slopes
        self._base = base
        self._rest = rest
        self._rounding = rounding / 2
        # In values of few digits three points in a row can lie on one step, or on three.
        self._stepped = rounding > 10 * torch.finfo(torch.float32).eps
        self.pairs = 0

    def at(self, radius: Number) -> tuple[Adjoint, dict[str, Tensor]]:
        """Return the product with a given radius, and its details.

        Args:
            radius: Norm of the perturbation.
        """
        pair = self._pair(radius)
        return pair.product, self._details(pair, self._relative(pair, pair.bend))

    def best(self, radius: Number, coarse: bool) -> tuple[Adjoint, dict[str, Tensor]]:
        """Return the product with a radius that serves, and its details.

        Where the one-sided differences of the first radius agree, that is all. Where they do not,
        other radii tell what is curvature and what is rounding.

        Args:
            radius: Radius to begin with.
            coarse: Whether θ or λ are of a type in which no radius has a small error.

        Raises:
            PrecisionError: Rounding leaves nothing of the difference.
            UnsupportedError: The gradient is not the derivative of the loss.
        """
        pair = self._pair(radius)
        if coarse:
            return pair.product, self._details(pair, self._relative(pair, pair.bend))
        if holds(pair.lost):
            wide = self._pair(radius * _RATIO**_MORE_PAIRS)
            if not wide.lost:
                pair = wide
        error = self._first_error(pair)
        self._refuse_other_gradients(pair)
        if not holds(error > _TOLERANCE):
            return pair.product, self._details(pair, error)
        pair, error = self._search(pair)
        details = self._details(pair, error)
        if error <= _TOLERANCE:
            return pair.product, details
        told = (
            f"the finite difference has an estimated error of {min(error, 9.99):.0%} with the best "
            f"radius found, {pair.radius:.1e}: the loss bends too soon for its rounding"
        )
        remedy = (
            "Use OneStep or Unrolled(1), or float64, or turn autocast off in the training loss."
        )
        if error >= 1.0:
            raise PrecisionError(f"{told}, and nothing is left of it. {remedy}")
        warnings.warn(f"{told}. {remedy}", AccuracyWarning, stacklevel=2)
        return pair.product, details

    def _search(self, first: _Pair) -> tuple[_Pair, float]:
        """Take more pairs on the side that bends less; returns the best one and its error.

        Toward smaller radii truncation falls with the square, toward larger ones rounding falls.
        """
        pairs = [first]
        for _ in range(_MORE_PAIRS):
            errors = self._errors(pairs)
            if min(errors) <= _TOLERANCE:
                break
            # Beyond all scales of the loss the bend falls again.
            beyond = pairs[-1].bend > 0.5 and self._noise(pairs[-1]) < 0.5 * _TOLERANCE
            if len(pairs) == 1:
                down = beyond if self._stepped else self._noise(first) <= first.bend
            else:
                down = pairs[0].bend <= pairs[-1].bend
            end = pairs[0 if down else -1]
            other = self._pair(end.radius * (1 / _RATIO if down else _RATIO))
            pairs.insert(0 if down else len(pairs), other)
        errors = self._errors(pairs)
        return pairs[errors.index(min(errors))], min(errors)

    def _first_error(self, pair: _Pair) -> Number:
        """Return the error of a pair that is the only one."""
        if not isinstance(pair.lost, Tensor):
            return 0.0 if pair.lost else self._errors([pair])[0]
        least = self._relative(pair, self._noise(pair))
        if self._stepped:
            return least + torch.inf
        return larger(self._relative(pair, pair.bend), least)

    def _errors(self, pairs: Sequence[_Pair]) -> list[float]:
        """Return the error of each of several pairs, sorted by radius, from its neighbors."""
        found = []
        for i, pair in enumerate(pairs):
            if pair.lost:
                found.append(float("inf"))
                continue
            neighbors = [*pairs[max(i - 1, 0) : i], *pairs[i + 1 : i + 2]]
            own = [self._apart(pair, other) for other in neighbors]
            if len(own) == 2:
                # A smaller radius is nearer to the truth, unless rounding has it.
                rounded = self._relative(pair, 3 * self._noise(neighbors[0])) >= own[0]
                worse = rounded or neighbors[0].bend > pair.bend
                own = [own[0] / _RATIO + own[1] / (_RATIO**2 - 1)] if worse else own[:1]
            elif not self._stepped:
                own.append(float(self._relative(pair, pair.bend)))
            least = self._relative(pair, self._noise(pair))
            found.append(max(min(own, default=float("inf")), float(least)))
        return found

    def _noise(self, pair: _Pair) -> Number:
        """Return the share of rounding in a difference at least, relative to it."""
        without = choose(pair.lost, float("inf"), 0.0)
        rounded = self._rounding * norm(self._base[1]) * pair.unit
        return quotient(rounded, norm(pair.product), without)

    def _pair(self, radius: Number) -> _Pair:
        self.pairs += 1
        epsilon = quotient(radius, self._slopes.length, 1.0)
        losses, sides = [], []
        for sign in (1.0, -1.0):
            shifted = self._parameters | {
                name: self._parameters[name] + (sign * epsilon * along).to(along.dtype)
                for name, along in self._direction.items()
            }
            loss, side = self._evaluate(shifted)
            losses.append(number(loss))
            sides.append(side)
        up, down = sides
        product: Adjoint = [
            None if one is None or other is None else (one - other) / (2 * epsilon)
            for one, other in zip(up, down, strict=True)
        ]
        ends = [
            None
            if one is None or other is None or middle is None
            else (one - middle) - (middle - other)
            for one, other, middle in zip(up, down, self._base[1], strict=True)
        ]
        size = norm(product)
        lost = (size == 0.0) & (self._slopes.length > 0) & (norm(self._base[1]) > 0)
        middle = number(self._base[0])
        return _Pair(
            radius=radius,
            product=product,
            bend=quotient(norm(ends) / (2 * epsilon), size, choose(lost, float("inf"), 0.0)),
            rise=(losses[0] - losses[1]) / (2 * radius),
            sag=magnitude(losses[0] + losses[1] - 2 * middle) / (2 * radius),
            unit=1 / (2 * epsilon),
            lost=lost,
        )

    def _total(self, pair: _Pair) -> Number:
        return norm(add_adjoints(pair.product, self._rest))

    def _relative(self, pair: _Pair, error: Number) -> Number:
        """Return an error of the product relative to the whole hypergradient."""
        size = norm(pair.product)
        # Where there is no product, its error may be infinite.
        share = choose(size == 0, 0.0, error) * size
        return quotient(share, self._total(pair), 0.0)

    def _apart(self, one: _Pair, other: _Pair) -> float:
        """Return by how much two differences are apart, relative to the whole hypergradient."""
        gaps = [
            None if a is None or b is None else a - b
            for a, b in zip(one.product, other.product, strict=True)
        ]
        total = self._total(one)
        return float(norm(gaps) / total) if total else 0.0

    def _refuse_other_gradients(self, pair: _Pair) -> None:
        """Raise where the slope of the loss is another than its gradient says."""
        noise = 200 * self._rounding * magnitude(number(self._base[0])) / pair.radius
        gap = magnitude(pair.rise - self._slopes.along)
        slope = larger(magnitude(pair.rise), magnitude(self._slopes.along))
        limit = 0.1 * slope + pair.sag + noise
        if holds((pair.bend < _TOLERANCE) & (gap > limit)):
            raise UnsupportedError(
                f"along the direction of the difference the training loss rises by {pair.rise:.3e} "
                f"and its gradient says {self._slopes.along:.3e}: the gradient is not the "
                "derivative of the value (a straight-through estimator, a hook that changes "
                "gradients, a value kept from an earlier call). A difference cannot see what such "
                "a gradient stands for; use OneStep or Unrolled."
            )

    def _details(self, pair: _Pair, error: Number) -> dict[str, Tensor]:
        gap = magnitude(pair.rise - self._slopes.along)
        values: Mapping[str, Number] = {
            "difference_error": error,
            "radius": pair.radius,
            "slope_error": quotient(gap, self._slopes.inner, 0.0),
        }
        return {n: torch.as_tensor(value, dtype=torch.float64) for n, value in values.items()}
