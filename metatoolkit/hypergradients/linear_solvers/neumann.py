"""The Neumann series."""

from __future__ import annotations

import dataclasses
import math

import torch
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Solution,
    check_iteration,
)
from metatoolkit.hypergradients.linear_solvers.registry import solvers
from metatoolkit.hypergradients.linear_solvers.richardson import iterate


@solvers.register()
@dataclasses.dataclass(frozen=True)
class Neumann(LinearSolver):
    """The Neumann series x = α Σ_k (I − α M)ᵏ b, as x ← x + α (b − M x).

    It converges where all eigenvalues μ of M have abs(1 − α μ) < 1, and for a symmetric positive
    definite M at the rate 1 − 1/κ with α one over the largest eigenvalue. One product per
    iteration, and ``power_iterations`` where α is estimated; memory: four vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        step_size: α; ``None`` for one over the largest eigenvalue, from power iteration.
        power_iterations: Iterations of that.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> Neumann().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6
    step_size: float | None = None
    power_iterations: int = 10

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ConfigurationError(f"step_size is {self.step_size}; a number above 0, or None.")
        if self.power_iterations < 1:
            raise ConfigurationError(
                f"power_iterations is {self.power_iterations}; at least 1 is needed."
            )

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best.

        Raises:
            UnsupportedError: The series diverges.
        """
        step_size = self.step_size
        details: dict[str, float] = {}
        if step_size is None:
            largest = self._largest_eigenvalue(system)
            step_size = 1.0 / largest if largest > 0 else 1.0
            details["largest_eigenvalue"] = largest
        details["step_size"] = step_size
        return iterate(
            system,
            step_size,
            self.iterations,
            self.tolerance,
            f"Neumann does not converge at step_size={step_size:.3g}",
            "Lower step_size or leave it None, raise power_iterations, or",
            details,
        )

    def _largest_eigenvalue(self, system: LinearSystem) -> float:
        """Return the growth of a random vector in the last power iteration."""
        rhs = system.right_hand_side
        generator = torch.Generator(rhs.device).manual_seed(system.key)
        vector = torch.randn(rhs.shape, generator=generator, dtype=rhs.dtype, device=rhs.device)
        growth = vector.norm()
        for _ in range(self.power_iterations):
            vector = system.product(vector / growth)
            # A zero vector stays one.
            growth = vector.norm().clamp_min(torch.finfo(rhs.dtype).tiny)
        return float(vector.norm())
