"""The best iterate of a solver, by the residual that rounding leaves room for."""

from __future__ import annotations

import math

from torch import Tensor
from torch.linalg import vector_norm

from metatoolkit.hypergradients.linear_solvers.base import LinearSystem, Solution


class Progress:
    """Keeps the iterate with the least residual, as far as the residual can be known.

    A solver knows its residual from a recurrence, which goes on to fall where that of the iterate
    itself cannot: its product with the matrix has a rounding error of about eps ‖M‖ ‖x‖. The sum
    of both is what iterates are compared by, so that none is taken for better than it is, and the
    result is never worse than the first iterate. Keeping it costs a vector, and the first iterate
    another.

    Args:
        vector: First iterate.
        residual: Norm of its residual.
        system: System that is solved.
        scale: Norm that residuals are told relative to; ``None`` for that of b.

    Attributes:
        norm: Norm of the matrix, as far as products have told.
        stagnated: Whether no more iterations are of use.
    """

    def __init__(
        self, vector: Tensor, residual: float, system: LinearSystem, scale: float | None = None
    ) -> None:
        self._first = (vector, residual)
        self._vector = vector
        self._least = residual if math.isfinite(residual) else math.inf
        self._scale = float(vector_norm(system.right_hand_side)) if scale is None else scale
        self._dtype = vector.dtype
        self._system = system
        self._rounding = system.eps
        self.norm = 0.0
        self._found_at = 0
        self.stagnated = False

    def see(self, size: float) -> None:
        """Learn how large the matrix is.

        Args:
            size: Norm of the image of a unit vector.
        """
        self.norm = max(self.norm, size)

    def floor(self, size: float) -> float:
        """Return the residual below which rounding hides that of an iterate.

        Args:
            size: Norm of the iterate.
        """
        return self._rounding * self.norm * size

    def improves(self, residual: float, size: float) -> bool:
        """Return whether an iterate is better than the best so far.

        Args:
            residual: Norm of its residual by the recurrence.
            size: Norm of the iterate.
        """
        return residual + self.floor(size) < self._least

    def offer(self, vector: Tensor, residual: float, iteration: int) -> bool:
        """Keep an iterate if it is the best, and return whether more iterations are of use.

        They are not where the recurrence has fallen below rounding.

        Args:
            vector: The iterate.
            residual: Norm of its residual by the recurrence.
            iteration: Its number.
        """
        size = math.sqrt(float(vector.dot(vector)))
        if self.improves(residual, size):
            self._vector, self._found_at = vector, iteration
            self._least = residual + self.floor(size)
        self.stagnated = not residual > self.floor(size)
        return not self.stagnated

    def verify(self) -> None:
        """Compare the best iterate with the first by its true residual, and take the better one.

        For recurrences that may be far off. Cost: one product.
        """
        system = self._system
        vector, first = self._vector.to(self._dtype), self._first[1]
        self._least = float((system.right_hand_side - system.product(vector)).norm())
        if not self._least <= first:
            self._vector, self._least, self._found_at = self._first[0], first, 0
            self.stagnated = True

    def solution(self, done: int, target: float, **details: float) -> Solution:
        """Return the best iterate with what is known of it.

        Args:
            done: Iterations taken.
            target: Norm of the residual that was to be reached.
            details: What else to tell.
        """
        known = {
            "best_iteration": float(self._found_at),
            "estimated_residual": self._least / self._scale if self._scale > 0 else 0.0,
            **details,
        }
        if self.stagnated and self._least > target:
            known["stagnated"] = 1.0
        vector = self._vector.to(self._dtype)
        return Solution(vector, done, {n: vector.new_tensor(value) for n, value in known.items()})
