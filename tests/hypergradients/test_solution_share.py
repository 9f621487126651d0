"""No solution of a linear system is taken that is worse than zero."""

import math

import pytest
import torch

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import Implicit
from metatoolkit.hypergradients.linear_solvers import ConjugateGradient, LinearSystem, Nystrom
from metatoolkit.hypergradients.solution_share import checked_share
from metatoolkit.randomness import fold_in
from tests import bank

F64 = torch.float64


def dense(case):
    """The matrix, the right-hand side and what maps a solution to the hypergradient."""
    curvature, mixing, _ = case.train_batches[0]
    return curvature, case.problem.model.value.detach() - case.valid_batch, mixing


@pytest.mark.parametrize("damping", [1e-3, 1e-2, 0.1])
def test_of_a_low_rank_beside_a_small_damping_the_best_multiple_is_taken(damping):
    case = bank.quadratic(50.0)
    matrix, rhs, mixing = dense(case)
    solver, state = Nystrom(2, damping), case.state
    scale = 2.0 ** math.floor(math.log2(float(rhs.abs().max())))
    system = LinearSystem(
        product=lambda x: matrix @ x,
        transposed_product=lambda x: matrix @ x,
        right_hand_side=rhs / scale,
        key=fold_in(Implicit(solver)._draws.advance(state), state.step, -3),
    )
    x = solver.solve(system).vector * scale
    image = matrix @ x
    assert float((rhs - image).norm()) > 5 * float(rhs.norm())
    share = image.dot(rhs) / image.dot(image)
    found = case.call(Implicit(solver))
    torch.testing.assert_close(found.gradient["value"], share * (mixing.T @ x), rtol=1e-8, atol=0)
    left = float((rhs - share * image).norm() / rhs.norm())
    assert found.cost.residual == pytest.approx(left, rel=1e-8) and left < 1
    assert float(found.details["share"]) == pytest.approx(float(share), rel=1e-8)
    # One product for each direction, and the one that the derivative in λ takes.
    assert found.cost.hvp == 3


@pytest.mark.parametrize("solver", [Nystrom(12, 1e-6), Nystrom(3, 20.0), ConjugateGradient(30)])
def test_a_solution_that_is_better_than_zero_is_taken_as_it_is(solver):
    found = bank.quadratic(50.0).call(Implicit(solver))
    assert "share" not in found.details and found.cost.residual < 1


def test_shares():
    rhs = torch.tensor([3.0, 4.0], dtype=F64)
    solver = Nystrom(1, 0.5)
    assert checked_share(solver, rhs, rhs, rhs) == 1.0
    assert checked_share(solver, rhs, 2 * rhs, rhs) == 1.0
    assert checked_share(solver, rhs, 3 * rhs, rhs) == pytest.approx(1 / 3)
    with pytest.raises(UnsupportedError, match="residual 2, which is worse than zero"):
        checked_share(solver, rhs, -rhs, rhs)
    with pytest.raises(UnsupportedError, match="worse than zero"):
        checked_share(ConjugateGradient(), rhs, 2.1 * rhs, rhs)
    assert checked_share(ConjugateGradient(), rhs, 2 * rhs, rhs) == 1.0
    # With a damping the residual is that of the damped system.
    assert checked_share(ConjugateGradient(damping=2.0), -rhs / 2, 2 * rhs, rhs) == 1.0
    with pytest.raises(UnsupportedError, match="worse than zero"):
        checked_share(ConjugateGradient(damping=2.0), rhs / 2, 2 * rhs, rhs)
    assert checked_share(solver, 0 * rhs, 0 * rhs, 0 * rhs) == 1.0
