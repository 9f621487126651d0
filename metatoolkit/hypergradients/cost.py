"""What a hypergradient took, in passes and products."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a hypergradient took.

    Attributes:
        forward: Forward passes over one batch.
        backward: First-order backward passes over one batch.
        jvp: Jacobian-vector products of an inner step.
        hvp: Vector products with second derivatives of the training loss (double backward).
        residual: Norm of what a linear solver left, relative to its right-hand side; ``None``
            where there is no solver.
        iterations: Iterations of the solver, likewise.
    """

    forward: int = 0
    backward: int = 0
    jvp: int = 0
    hvp: int = 0
    residual: float | None = None
    iterations: int | None = None

    @property
    def passes(self) -> int:
        """What that takes at most in forward passes F: backward ones 2 F each, products 6 F."""
        return self.forward + 2 * self.backward + 6 * (self.jvp + self.hvp)
