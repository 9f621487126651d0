"""No solution of a linear system is taken that is worse than zero."""

import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import Implicit
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    ConjugateGradient,
    LinearSystem,
    Nystrom,
    Solution,
)
from metatoolkit.hypergradients.solution_share import checked_share
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank

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

    def share(solver, vector, image, right=rhs, **details):
        return checked_share(solver, Solution(vector, 1, details), image, right)

    solver = Nystrom(1, 0.5)
    assert share(solver, rhs, rhs) == 1.0
    assert share(solver, rhs, 2 * rhs) == 1.0
    assert share(solver, rhs, 3 * rhs) == pytest.approx(1 / 3)
    with pytest.raises(UnsupportedError, match="residual 2, which is worse than zero"):
        share(solver, rhs, -rhs)
    with pytest.raises(UnsupportedError, match="worse than zero"):
        share(ConjugateGradient(), rhs, 2.1 * rhs)
    assert share(ConjugateGradient(), rhs, 2 * rhs) == 1.0
    # With a damping the residual is that of the damped system.
    assert share(ConjugateGradient(damping=2.0), -rhs / 2, 2 * rhs) == 1.0
    with pytest.raises(UnsupportedError, match="worse than zero"):
        share(ConjugateGradient(damping=2.0), rhs / 2, 2 * rhs)
    assert share(solver, 0 * rhs, 0 * rhs, 0 * rhs) == 1.0
    # Zero is an answer where nothing is asked for, or where the user wants to stop there.
    ended = torch.tensor(1.0)
    assert share(ConjugateGradient(), 0 * rhs, 0 * rhs, 0 * rhs, stagnated=ended) == 1.0
    assert share(ConjugateGradient(), 0 * rhs, 0 * rhs) == 1.0
    assert share(ConjugateGradient(), rhs, rhs, stagnated=ended) == 1.0
    with pytest.raises(UnsupportedError, match="nothing that is better than zero"):
        share(ConjugateGradient(), 0 * rhs, 0 * rhs, stagnated=ended)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_slots_of_another_size_than_parameters_need_digits(dtype):
    # Of a moment that has just begun, v̂ is 1e-6 and the derivative of 1/√v̂ 1e9.
    def case():
        problem = mt.BilevelProblem(
            bank.Value([0.5, -0.25], dtype),
            bank.Value([1.0, 2.0], dtype),
            lambda model, meta, batch: 1e-3 * ((meta.value * model.value - batch) ** 2).sum(),
            lambda model, meta, batch: ((model.value - batch) ** 2).sum(),
        )
        inner = mt.inner.AdamW(lr=0.01)
        state, batch = inner.init(problem), torch.tensor([1.0, 0.5], dtype=dtype)
        for _ in range(3):
            state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        return problem, inner, state, [batch], batch

    def call(through):
        return Implicit(GMRES(20), through=through)(*case())

    if dtype == torch.float64:
        assert call("state").cost.residual < 1e-2
    else:
        with pytest.raises(UnsupportedError, match="through='parameters'"):
            call("state")
    assert call("parameters").cost.residual < 0.1
