"""A linear solver of one's own: steps along the residual, each as long as leaves the least."""

import dataclasses

from typing_extensions import override

from metatoolkit.hypergradients.linear_solvers import LinearSolver, Solution, register


@register()
@dataclasses.dataclass(frozen=True)
class MinimalResidual(LinearSolver):
    """x ← x + α r with α = ⟨r, M r⟩ / ‖M r‖², for M of a positive definite symmetric part."""

    iterations: int = 500
    tolerance: float = 1e-6

    @override
    def solve(self, system):
        x, residual = system.first_residual()
        target = self.tolerance * system.right_hand_side.norm()
        done = 0
        while done < self.iterations and residual.norm() > target:
            image = system.product(residual)
            length = residual.dot(image) / image.dot(image)
            x, residual = x + length * residual, residual - length * image
            done += 1
        return Solution(x, done)
