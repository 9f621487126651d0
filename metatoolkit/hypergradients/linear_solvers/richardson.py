"""Richardson's iteration, which the Neumann series and the fixed-point iteration are."""

from __future__ import annotations

from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.linear_solvers.base import LinearSystem


def iterate(
    system: LinearSystem,
    step_size: float,
    iterations: int,
    tolerance: float,
    problem: str,
    remedy: str,
) -> tuple[Tensor, int]:
    """Take steps x ← x + α (b − M x) and watch the residual.

    Args:
        system: The system.
        step_size: α.
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        problem: What a divergence means, as the beginning of the message.
        remedy: What to do about it, likewise.

    Returns:
        The last iterate, and the number of iterations taken.

    Raises:
        UnsupportedError: The iteration diverges.
    """
    x, residual = system.first_residual()
    norm = float(system.right_hand_side.norm())
    first = float(residual.norm())
    left, done = first, 0
    while done < iterations and left > tolerance * norm:
        x = x + step_size * residual
        residual = system.right_hand_side - system.product(x)
        left = float(residual.norm())
        done += 1
        # A matrix that is not normal may let the residual grow for a while.
        if left > (100.0 if done < iterations else 1.0) * max(first, norm):
            raise UnsupportedError(
                f"{problem}: after {done} iterations the residual is {left / norm:.3g} times the "
                f"right-hand side. {remedy} use GMRES or NormalEquationCG, which need no "
                "contraction."
            )
    return x, done
