"""Conjugate gradient on the normal equations."""

from __future__ import annotations

import dataclasses

from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Solution,
    check_iteration,
)


@dataclasses.dataclass(frozen=True)
class NormalEquationCG(LinearSolver):
    """Conjugate gradient on the normal equations MᵀM x = Mᵀb, for any regular M.

    The residual of M x = b falls in every iteration, at a rate of at least (κ − 1)/(κ + 1) with κ
    the condition number of M. Two products per iteration, one with M and one with Mᵀ; memory:
    five vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        damping: ρ of the least-squares problem with ρ ‖x‖² added, at least 0.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance, self.damping)

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        gradient = system.transposed_product(residual) - self.damping * x
        direction = gradient.clone()
        square = gradient.dot(gradient)
        done = 0
        while done < self.iterations and float(residual.norm()) > target and float(square) > 0:
            image = system.product(direction)
            curvature = image.dot(image) + self.damping * direction.dot(direction)
            if float(curvature) == 0:
                break
            step = square / curvature
            x = x + step * direction
            residual = residual - step * image
            gradient = system.transposed_product(residual) - self.damping * x
            before, square = square, gradient.dot(gradient)
            direction = gradient + (square / before) * direction
            done += 1
        return Solution(x, done)
