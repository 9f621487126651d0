"""The generalized minimal residual method."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
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

    Example:
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> GMRES().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6
    restart: int | None = None

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance)
        if self.restart is not None and self.restart < 1:
            raise ConfigurationError(f"restart is {self.restart}; at least 1, or None.")

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best."""
        x, residual = system.first_residual()
        scale = float(system.right_hand_side.norm())
        target = self.tolerance * scale
        left = float(residual.norm())
        progress = Progress(x, left, system)
        done = 0
        while done < self.iterations and left > target:
            length = self.iterations - done
            length = length if self.restart is None else min(length, self.restart)
            correction, taken, expected = self._cycle(system, residual, length, target, progress)
            moved = x + correction
            done += taken
            if done == self.iterations:
                progress.offer(moved, expected, done)
                break
            residual = system.right_hand_side - system.product(moved)
            before, left = left, float(residual.norm())
            if not (progress.offer(moved, left, done) and left < 0.999 * before):
                progress.stagnated = True
                break
            x = moved
        return progress.solution(done, target)

    @staticmethod
    def _cycle(
        system: LinearSystem, residual: Tensor, length: int, target: float, progress: Progress
    ) -> tuple[Tensor, int, float]:
        """Return the best correction in at most ``length`` iterations, their number, and the norm.

        The norm is that of the residual with the correction, as the small problem has it.
        """
        norm = float(residual.norm())
        basis = [residual / norm]
        # Column k of the Hessenberg matrix holds k + 2 entries.
        hessenberg = torch.zeros(length + 1, length, dtype=torch.float64)
        goal = torch.zeros(length + 1, dtype=torch.float64)
        goal[0] = norm
        best, least, taken = goal[:0], norm, 0
        rounding = system.eps
        for k in range(length):
            image = system.product(basis[-1])
            size = float(image.norm())
            progress.see(size)
            taken += 1
            # Twice is enough to keep the basis orthogonal to rounding.
            for _ in range(2):
                parts = torch.stack([vector.dot(image) for vector in basis])
                for part, vector in zip(parts, basis, strict=True):
                    image = image - part * vector
                hessenberg[: k + 1, k] += parts.double().cpu()
            hessenberg[k + 1, k] = image.norm()
            small, right = hessenberg[: k + 2, : k + 1], goal[: k + 2]
            weights = torch.linalg.lstsq(small, right).solution
            left = float((right - small @ weights).norm())
            floor = progress.floor(float(weights.norm()))
            if left + floor < least:
                best, least = weights, left + floor
            if left <= max(target, floor) or float(hessenberg[k + 1, k]) <= rounding * size:
                break
            basis.append(image / image.norm())
        correction = torch.zeros_like(residual)
        for weight, vector in zip(best.tolist(), basis, strict=False):
            correction += weight * vector
        return correction, taken, least
