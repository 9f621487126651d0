"""The generalized minimal residual method."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.linear_solvers.base import (
    LinearSolver,
    LinearSystem,
    Product,
    Solution,
    check_iteration,
)


@dataclasses.dataclass(frozen=True)
class GMRES(LinearSolver):
    """The generalized minimal residual method of Saad and Schultz 1986, doi 10.1137/0907058.

    For any regular M: x minimizes the residual over the Krylov space, whose basis an Arnoldi
    process keeps. One product per iteration, and one more at every restart; memory:
    ``restart`` + 3 vectors.

    Args:
        iterations: Largest number of iterations, those of all restarts together.
        tolerance: Norm of the residual relative to b at which to stop.
        restart: Iterations after which the basis is dropped; ``None`` for never.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    restart: int | None = None

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)
        if self.restart is not None and self.restart < 1:
            raise ConfigurationError(f"restart is {self.restart}; at least 1, or None.")

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        done = 0
        while done < self.iterations and float(residual.norm()) > target:
            length = self.iterations - done
            length = length if self.restart is None else min(length, self.restart)
            correction, taken = self._cycle(system.product, residual, length, target)
            x = x + correction
            done += taken
            if done < self.iterations:
                before, residual = residual, system.right_hand_side - system.product(x)
                if not float(residual.norm()) < 0.999 * float(before.norm()):
                    break
        return Solution(x, done)

    @staticmethod
    def _cycle(
        product: Product, residual: Tensor, length: int, target: float
    ) -> tuple[Tensor, int]:
        """Return the correction after at most ``length`` iterations, and how many there were."""
        norm = float(residual.norm())
        basis = [residual / norm]
        # Column k of the Hessenberg matrix holds k + 2 entries.
        hessenberg = torch.zeros(length + 1, length, dtype=torch.float64)
        goal = torch.zeros(length + 1, dtype=torch.float64)
        goal[0] = norm
        weights = goal[:0]
        rounding = torch.finfo(residual.dtype).eps
        for k in range(length):
            image = product(basis[-1])
            size = float(image.norm())
            # Twice is enough to keep the basis orthogonal to rounding.
            for _ in range(2):
                parts = torch.stack([vector.dot(image) for vector in basis])
                for part, vector in zip(parts, basis, strict=True):
                    image = image - part * vector
                hessenberg[: k + 1, k] += parts.double().cpu()
            hessenberg[k + 1, k] = image.norm()
            small, right = hessenberg[: k + 2, : k + 1], goal[: k + 2]
            weights = torch.linalg.lstsq(small, right, driver="gelsd").solution
            left = float((right - small @ weights).norm())
            if left <= target or float(hessenberg[k + 1, k]) <= rounding * size:
                break
            basis.append(image / image.norm())
        correction = torch.zeros_like(residual)
        for weight, vector in zip(weights.tolist(), basis, strict=False):
            correction += weight * vector
        return correction, len(weights)
