"""Whether the solution of a linear system is better than zero, and what is made of it if not."""

from __future__ import annotations

from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.linear_solvers import LinearSolver, Solution


def checked_share(
    solver: LinearSolver, solution: Solution, image: Tensor, right_hand_side: Tensor
) -> float:
    """Return the share of a solution that is to be taken, 1 where it is better than zero.

    A solver that iterates is held to that. A low-rank approximation of the matrix knows nothing of
    what its rank leaves out, where the damping stands for all eigenvalues; with one that is far
    below them, the solution is far too large. The product with the matrix, which the derivative
    in λ takes anyway, then tells the multiple of the solution that has the least residual, in the
    system itself.

    Args:
        solver: The solver.
        solution: What it returned, with x.
        image: M x.
        right_hand_side: b.

    Returns:
        The share, in (0, 1].

    Raises:
        UnsupportedError: The residual is above that of zero, and no share helps; or rounding ended
            the iteration at zero, and the right-hand side is not zero.
    """
    vector = solution.vector
    if "stagnated" in solution.details and not vector.any() and right_hand_side.any():
        raise UnsupportedError(
            f"{type(solver).__name__} finds nothing that is better than zero: the entries of the "
            "linear system are of sizes so far apart that rounding hides what an iteration gains. "
            "Take float64, or an inner step whose variables are of one size: through='parameters', "
            "which takes the slots of Adam and its kin for constants, or SGD."
        )
    residual = right_hand_side - image
    # Room for the rounding of the two products that are compared.
    if solver.warm_startable:
        damped = residual - solver.diagonal * vector if solver.diagonal else residual
        left = relative_residual(damped, right_hand_side)
        if not left <= 1.01:
            raise _worse(solver, vector, left)
        return 1.0
    left = relative_residual(residual, right_hand_side)
    if left <= 1.0:
        return 1.0
    share = float(image.dot(right_hand_side)) / float(image.dot(image))
    if not share > 0:
        raise _worse(solver, vector, left)
    return share


def _worse(solver: LinearSolver, solution: Tensor, left: float) -> UnsupportedError:
    return UnsupportedError(
        f"{type(solver).__name__} returned a solution of the residual {left:.3g}, which is "
        "worse than zero: the linear system is singular, or too ill-conditioned for "
        f"{str(solution.dtype).removeprefix('torch.')} or the type of the parameters. Use "
        "fewer iterations, damping, a regularized training loss or float64."
    )


def relative_residual(residual: Tensor, right_hand_side: Tensor) -> float:
    """Return the norm of a residual over that of the right-hand side, and 0 where that is zero.

    Args:
        residual: What is left of the right-hand side.
        right_hand_side: Right-hand side of the linear system.
    """
    norm = float(right_hand_side.norm())
    return float(residual.norm()) / norm if norm > 0 else 0.0
