"""The minimal residual method."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from typing_extensions import override

from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Solution,
    check_iteration,
)
from metatoolkit.hypergradients.linear_solvers.progress import Progress
from metatoolkit.hypergradients.linear_solvers.registry import solvers

_DOUBTFUL = 1e-2
_UNRELIABLE = 1e3


@solvers.register()
@dataclasses.dataclass(frozen=True)
class MINRES(LinearSolver):
    """The minimal residual method of Paige and Saunders 1975, doi 10.1137/0712047.

    For a symmetric M that may be indefinite: x minimizes the residual over the Krylov space,
    which a Lanczos process builds and Givens rotations keep triangular. The iterate moves along
    directions that a recurrence makes, whose error grows with the square of the condition number;
    it is kept in float64. One product per iteration, and one to verify the last iterate
    where that condition number is beyond 1e7; memory: four vectors and four in float64.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> MINRES().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best."""
        x, residual = system.first_residual()
        scale = float(system.right_hand_side.norm())
        target = self.tolerance * scale
        left = float(residual.norm())
        progress = Progress(x, left, system)
        if left <= target:
            return progress.solution(0, target)
        rounding = system.eps
        basis, basis_before = residual / left, torch.zeros_like(residual)
        wide = residual.dtype if residual.device.type == "mps" else torch.float64
        x = x.to(wide)
        search, search_before = torch.zeros_like(x), torch.zeros_like(x)
        # The two rotations before the present one, as (cosine, sine).
        rotation, rotation_before = (1.0, 0.0), (1.0, 0.0)
        link = largest = longest = doubt = 0.0
        done = 0
        while done < self.iterations and abs(left) > target:
            image = system.product(basis)
            progress.see(float(image.norm()))
            image = image - link * basis_before
            diagonal = float(basis.dot(image))
            image = image - diagonal * basis
            next_link = float(image.norm())
            # The new column of the triangular factor: three entries above the one to be rotated.
            top = rotation_before[1] * link
            above = rotation_before[0] * link
            middle = rotation[0] * above + rotation[1] * diagonal
            corner = rotation[0] * diagonal - rotation[1] * above
            pivot = (corner**2 + next_link**2) ** 0.5
            largest = max(largest, abs(diagonal), next_link)
            if not pivot > rounding * largest:
                progress.stagnated = True
                break
            rotation_before, rotation = rotation, (corner / pivot, next_link / pivot)
            search_before, search = (
                search,
                (basis - top * search_before - middle * search) / pivot,
            )
            longest = max(longest, float(search.norm()))
            x = x + (rotation[0] * left) * search
            left = -rotation[1] * left
            done += 1
            # The directions tell the condition number, whose square is what rounding grows by.
            doubt = torch.finfo(wide).eps * (progress.norm * longest) ** 2
            if doubt > _UNRELIABLE:
                progress.stagnated = True
                break
            if not progress.offer(x, abs(left), done):
                break
            if next_link <= rounding * largest:
                # The Krylov space is exhausted.
                progress.stagnated = True
                break
            basis_before, basis, link = basis, image / next_link, next_link
        if doubt > _DOUBTFUL:
            progress.verify()
        return progress.solution(done, target)
