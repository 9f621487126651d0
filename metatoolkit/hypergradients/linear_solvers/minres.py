"""The minimal residual method."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Solution,
    check_iteration,
)


@dataclasses.dataclass(frozen=True)
class MINRES(LinearSolver):
    """The minimal residual method of Paige and Saunders 1975, doi 10.1137/0712047.

    For a symmetric M that may be indefinite: x minimizes the residual over the Krylov space,
    which a Lanczos process builds and Givens rotations keep triangular. One product per
    iteration; memory: seven vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        left = float(residual.norm())
        if left <= target:
            return Solution(x, 0)
        rounding = torch.finfo(residual.dtype).eps
        basis, basis_before = residual / left, torch.zeros_like(residual)
        search, search_before = torch.zeros_like(residual), torch.zeros_like(residual)
        # The two rotations before the present one, as (cosine, sine).
        rotation, rotation_before = (1.0, 0.0), (1.0, 0.0)
        link = scale = 0.0
        done = 0
        while done < self.iterations and abs(left) > target:
            image = system.product(basis) - link * basis_before
            diagonal = float(basis.dot(image))
            image = image - diagonal * basis
            next_link = float(image.norm())
            # The new column of the triangular factor: three entries above the one to be rotated.
            top = rotation_before[1] * link
            above = rotation_before[0] * link
            middle = rotation[0] * above + rotation[1] * diagonal
            corner = rotation[0] * diagonal - rotation[1] * above
            pivot = (corner**2 + next_link**2) ** 0.5
            scale = max(scale, abs(diagonal), next_link)
            if pivot <= rounding * scale:
                break
            rotation_before, rotation = rotation, (corner / pivot, next_link / pivot)
            search_before, search = (
                search,
                (basis - top * search_before - middle * search) / pivot,
            )
            x = x + (rotation[0] * left) * search
            left = -rotation[1] * left
            done += 1
            if next_link <= rounding * scale:
                break
            basis_before, basis, link = basis, image / next_link, next_link
        return Solution(x, done)
