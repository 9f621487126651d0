"""Conjugate gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from torch.linalg import vector_norm
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
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
class ConjugateGradient(LinearSolver):
    """Conjugate gradient, for a symmetric positive definite M (Hestenes and Stiefel 1952).

    After k iterations the error in the norm of M is at most 2 ((√κ − 1)/(√κ + 1))ᵏ times the
    first one, with κ the condition number. The residual may rise on the way; the iterate with the
    least is returned. One product per iteration; memory: five vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        damping: ρ of the system (M + ρ I) x = b that is solved instead, at least 0.
        negative_curvature: What to do where pᵀ(M + ρ I)p ≤ 0 shows that M + ρ I is not positive
            definite: ``"error"``, or ``"stop"`` with the iterate before and the detail
            ``negative_curvature``, that value over pᵀp.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> ConjugateGradient().solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    iterations: int = 50
    tolerance: float = 1e-6
    damping: float = 0.0
    negative_curvature: Literal["error", "stop"] = "error"
    symmetric: ClassVar[bool] = True
    checks_products: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_iteration(self.iterations, self.tolerance, self.damping)
        if self.negative_curvature not in ("error", "stop"):
            raise ConfigurationError(
                f"negative_curvature is {self.negative_curvature!r}; accepted: 'error', 'stop'."
            )

    @property
    @override
    def diagonal(self) -> float:
        """The damping."""
        return self.damping

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the best.

        Raises:
            UnsupportedError: M is not positive definite, unless that is to stop the iteration.
        """
        damped = system.damped(self.damping)
        x, residual = damped.first_residual()
        scale = float(vector_norm(system.right_hand_side))
        target = self.tolerance * scale
        direction = residual
        square = along = float(residual.dot(residual))
        left = math.sqrt(square)
        progress = Progress(x, left, damped)
        rounding = system.eps
        done = 0
        while done < self.iterations and left > target:
            image = damped.product(direction)
            curvature = float(direction.dot(image))
            # As inner products, which take half as long as norms.
            long, longer = math.sqrt(along), math.sqrt(float(image.dot(image)))
            if not math.isfinite(longer):
                system.check(image)
            progress.see(longer / long)
            if curvature <= rounding * long * longer:
                if left <= rounding * scale:
                    # Rounding is all that is left, which tells nothing of M.
                    break
                relative = curvature / float(direction.dot(direction))
                if self.negative_curvature == "error":
                    raise UnsupportedError(_indefinite(relative, self.damping))
                return progress.solution(done, target, negative_curvature=relative)
            step = square / curvature
            x = torch.add(x, direction, alpha=step)
            residual = torch.sub(residual, image, alpha=step)
            before, square = square, float(residual.dot(residual))
            left = math.sqrt(square)
            direction = torch.add(residual, direction, alpha=square / before)
            # Residuals are perpendicular to the directions before.
            along = square + (square / before) ** 2 * along
            done += 1
            if not progress.offer(x, left, done):
                break
        return progress.solution(done, target)


def _indefinite(curvature: float, damping: float) -> str:
    return (
        f"ConjugateGradient met a direction of curvature {curvature:.3g} with damping={damping}: "
        "the training loss is no strictly convex function at this state. Use MINRES (symmetric, "
        "indefinite), NormalEquationCG or GMRES, raise the damping, train θ for longer, or pass "
        "negative_curvature='stop'."
    )
