"""Conjugate gradient on the normal equations."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Solution,
    check_iteration,
)
from metatoolkit.hypergradients.linear_solvers.progress import Progress
from metatoolkit.hypergradients.linear_solvers.registry import solvers


@solvers.register()
@dataclasses.dataclass(frozen=True)
class NormalEquationCG(LinearSolver):
    """Conjugate gradient on the normal equations MᵀM x = Mᵀb, for any regular M.

    The residual of M x = b falls in every iteration, at a rate of at least (κ − 1)/(κ + 1) with κ
    the condition number of M. With damping the system is (MᵀM + ρ I) x = Mᵀb, and its residual is
    what stops the iteration. Two products per iteration, one with M and one with Mᵀ, one with Mᵀ
    before, and one more for the first residual where damping meets a start; memory: six vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop; with damping, of the normal
            equations' residual relative to Mᵀb.
        damping: ρ of the least-squares problem with ρ ‖x‖² added, at least 0.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> NormalEquationCG().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance, self.damping)

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best."""
        x, residual, gradient, scale = self._begin(system)
        target = self.tolerance * scale
        direction = gradient
        square = gradient.dot(gradient)
        left = self._left(residual, square)
        progress = Progress(x, left, system, scale)
        rounding = system.eps
        # What rounding leaves of the gradient where the system has no solution.
        noise = 0.0
        done = 0
        while done < self.iterations and left > target and float(square) > noise**2:
            image = system.product(direction)
            curvature = image.dot(image) + self.damping * direction.dot(direction)
            if not float(curvature) > 0:
                progress.stagnated = True
                break
            largest = float(curvature / direction.dot(direction))
            progress.see(largest**0.5 if self.damping == 0 else largest)
            step = square / curvature
            x = x + step * direction
            residual = residual - step * image
            gradient = system.transposed_product(residual) - self.damping * x
            before, square = square, gradient.dot(gradient)
            left = self._left(residual, square)
            if self.damping == 0:
                noise = rounding * progress.norm * left
            direction = gradient + (square / before) * direction
            done += 1
            if not progress.offer(x, left, done):
                break
        progress.stagnated = progress.stagnated or not float(square) > noise**2
        return progress.solution(done, target)

    def _begin(self, system: LinearSystem) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return the first iterate, b − M x, the gradient there, and the norm of the system."""
        rhs = system.right_hand_side
        x, residual = system.first_residual()
        gradient = system.transposed_product(residual)
        if self.damping == 0:
            return x, residual, gradient, float(rhs.norm())
        if not bool(x.any()):
            return x, residual, gradient, float(gradient.norm())
        gradient = gradient - self.damping * x
        normal = system.transposed_product(rhs)
        if float(gradient.norm()) <= float(normal.norm()):
            return x, residual, gradient, float(normal.norm())
        return torch.zeros_like(rhs), rhs, normal, float(normal.norm())

    def _left(self, residual: Tensor, square: Tensor) -> float:
        """Return the norm of what is left of the system that is solved."""
        return float(residual.norm() if self.damping == 0 else square.sqrt())
