"""Richardson's iteration, which the Neumann series and the fixed-point iteration are."""

from __future__ import annotations

from collections.abc import Mapping

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.linear_solvers.base import LinearSystem, Solution
from metatoolkit.hypergradients.linear_solvers.progress import Progress


def iterate(
    system: LinearSystem,
    step_size: float,
    iterations: int,
    tolerance: float,
    problem: str,
    remedy: str,
    details: Mapping[str, float] | None = None,
) -> Solution:
    """Take steps x ← x + α (b − M x) and watch the residual.

    Args:
        system: The system.
        step_size: α.
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        problem: What a divergence means, as the beginning of the message.
        remedy: What to do about it, likewise.
        details: What else the solution is to tell.

    Returns:
        The best iterate; its details hold ``stagnated`` where the residual rose after it.

    Raises:
        UnsupportedError: The iteration diverges.
    """
    x, residual = system.first_residual()
    norm = float(system.right_hand_side.norm())
    target = tolerance * norm
    left, done = float(residual.norm()), 0
    progress = Progress(x, left, system)
    rising = False
    while done < iterations and left > target:
        x = x + step_size * residual
        residual = system.right_hand_side - system.product(x)
        left = float(residual.norm())
        done += 1
        rising = not progress.improves(left, 0.0)
        progress.offer(x, left, done)
        # A matrix that is not normal may let the residual grow for a while; NaN is above all.
        if not left <= (100.0 if done < iterations else 1.0) * norm:
            raise UnsupportedError(
                f"{problem}: after {done} iterations the residual is {left / norm:.3g} times the "
                f"right-hand side. {remedy} use GMRES or NormalEquationCG, which need no "
                "contraction."
            )
    progress.stagnated = rising
    return progress.solution(done, target, **(details or {}))
