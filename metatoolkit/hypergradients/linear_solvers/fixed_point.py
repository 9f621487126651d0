"""The adjoint fixed-point iteration."""

from __future__ import annotations

import dataclasses

from typing_extensions import override

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
class FixedPoint(LinearSolver):
    """The adjoint fixed-point iteration x ← x + (b − M x), which is u ← ∂Φᵀ u + b for M = I − ∂Φᵀ.

    It converges for every contraction Φ, at the rate ρ, the spectral radius of ∂Φ (Grazzi et al.
    2020, arXiv 2006.16218). One product per iteration; memory: four vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> FixedPoint().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best.

        Raises:
            UnsupportedError: The iteration diverges, since the inner step is no contraction.
        """
        return iterate(
            system,
            1.0,
            self.iterations,
            self.tolerance,
            "FixedPoint does not converge, for the inner step is no contraction at this state",
            "Lower the inner learning rate, train θ for longer, or",
        )
