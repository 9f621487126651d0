"""Where solvers break down: none returns what is worse than the best it had, or than zero."""

import dataclasses
import math

import pytest
import torch

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import Implicit
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    LinearSystem,
    Neumann,
    NormalEquationCG,
    Nystrom,
)
from metatoolkit.hypergradients.linear_solvers.progress import Progress
from metatoolkit.testing import bank
from metatoolkit.testing.linear_systems import Counted, relative_error, rotation, symmetric
from tests.hypergradients.test_solver_edges import diagonal

F32, F64 = torch.float32, torch.float64
SOLVERS = {
    "CG": lambda n: ConjugateGradient(n, 0.0, negative_curvature="stop"),
    "CG, damped": lambda n: ConjugateGradient(n, 0.0, damping=0.1, negative_curvature="stop"),
    "MINRES": lambda n: MINRES(n, 0.0),
    "GMRES": lambda n: GMRES(n, 0.0),
    "GMRES, restarted": lambda n: GMRES(n, 0.0, restart=5),
    "NormalEquationCG": lambda n: NormalEquationCG(n, 0.0),
    "NormalEquationCG, damped": lambda n: NormalEquationCG(n, 0.0, damping=1e-3),
    "Neumann": lambda n: Neumann(n, 0.0),
    "FixedPoint": lambda n: FixedPoint(n, 0.0),
}
SPECTRA = {
    "condition 1e4": torch.logspace(0, -4, 30, dtype=F64),
    "condition 1e6": torch.logspace(0, -6, 30, dtype=F64),
    "condition 1e8": torch.logspace(0, -8, 30, dtype=F64),
    "condition 1e12": torch.logspace(0, -12, 30, dtype=F64),
    "singular": torch.cat([torch.linspace(0.1, 1, 15, dtype=F64), torch.zeros(15, dtype=F64)]),
    "indefinite": torch.logspace(0, -5, 30, dtype=F64) * torch.tensor([1.0, -1.0] * 15),
    "negative": -torch.logspace(0, -3, 30, dtype=F64),
    "one variable": torch.tensor([0.3], dtype=F64),
}


def true_residual(case, solver, x):
    """The residual of the system that the solver solves, relative to its right-hand side."""
    matrix, rhs, x = case.matrix.double(), case.rhs.double(), x.double()
    damping = getattr(solver, "damping", 0.0)
    if isinstance(solver, NormalEquationCG) and damping:
        matrix, rhs = matrix.T @ matrix, matrix.T @ rhs
    return float((rhs - matrix @ x - damping * x).norm() / rhs.norm())


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS.keys())
def test_more_iterations_never_end_worse_than_zero_or_than_fewer(make, spectrum, dtype):
    least = 1.0
    for iterations in (1, 5, 20, 50, 300):
        for start in (None, 100 * torch.ones(len(spectrum), dtype=dtype)):
            solver, case = make(iterations), symmetric(spectrum, dtype, start)
            try:
                solution = solver.solve(case.system)
            except UnsupportedError as error:
                # A series that diverges is refused, whatever it had on the way.
                assert isinstance(solver, Neumann | FixedPoint), error
                continue
            left = true_residual(case, solver, solution.vector)
            assert left <= 1.0 + 1e-3, (iterations, solution.details)
            if start is None:
                # Rounding of the products is all that may come between.
                assert left <= 1.05 * least + 10 * torch.finfo(dtype).eps * float(
                    solution.vector.norm() / case.rhs.norm()
                )
                least = min(least, left)


@pytest.mark.parametrize("iterations", [20, 50, 100, 1000])
def test_damped_normal_equations_stop_at_their_own_solution(iterations):
    case = symmetric(torch.logspace(0, -3, 10, dtype=F64))
    solver = NormalEquationCG(iterations, 1e-6, damping=0.01)
    normal = case.matrix.T @ case.matrix + 0.01 * torch.eye(10, dtype=F64)
    expected = torch.linalg.solve(normal, case.matrix.T @ case.rhs)
    for start in (None, torch.ones(10, dtype=F64), expected):
        solution = solver.solve(symmetric(torch.logspace(0, -3, 10), start=start).system)
        assert float((solution.vector - expected).norm() / expected.norm()) < 1e-4
        assert solution.iterations < 20
        assert float(solution.details["estimated_residual"]) <= 2e-6


def test_normal_equations_stay_where_they_converged():
    case = symmetric(torch.logspace(0, -2, 10, dtype=F64), F32)
    errors = [
        relative_error(case, NormalEquationCG(n, 0.0).solve(case.system).vector)
        for n in (50, 100, 400, 2000)
    ]
    assert max(errors) < 1e-4


def test_minres_in_float32_at_condition_1e6_goes_on_to_rounding():
    # Of κ² eps, its error with directions in float32, nothing would be left.
    case = symmetric(torch.logspace(0, -6, 30, dtype=F64), F32)
    left = [
        true_residual(case, MINRES, MINRES(iterations, 0.0).solve(case.system).vector)
        for iterations in (10, 60, 300)
    ]
    assert left[0] < 0.85 and left[1] < 0.6 and left[2] < 0.1


def test_a_singular_system_with_a_solution_gets_it():
    case = symmetric([2.0, 1.0, 0.5, 0.0, 0.0])
    case = Counted(case.matrix, case.matrix @ torch.linspace(1, 2, 5, dtype=F64))
    expected = torch.linalg.pinv(case.matrix, hermitian=True) @ case.rhs
    for solver in (MINRES(50, 1e-12), GMRES(50, 1e-12), NormalEquationCG(50, 1e-12)):
        torch.testing.assert_close(solver.solve(case.system).vector, expected)


def test_a_singular_system_without_a_solution_is_told():
    case = symmetric([2.0, 1.0, 0.5, 0.0, 0.0])
    least = case.rhs - case.matrix @ torch.linalg.pinv(case.matrix, hermitian=True) @ case.rhs
    expected = float(least.norm() / case.rhs.norm())
    for solver in (MINRES(400, 1e-9), GMRES(400, 1e-9), NormalEquationCG(400, 1e-9)):
        solution = solver.solve(case.system)
        assert true_residual(case, solver, solution.vector) == pytest.approx(expected, rel=1e-6)
        assert float(solution.details["stagnated"]) == 1.0, solver
        assert solution.iterations < 50


def test_a_fixed_point_iteration_that_turns_returns_its_best():
    # The slow direction grows by 1.2 and is tiny at first.
    matrix = torch.diag(torch.tensor([0.5, -0.2], dtype=F64))
    case = Counted(matrix, torch.tensor([1.0, 1e-4], dtype=F64))
    solution = FixedPoint(40, 1e-12).solve(case.system)
    assert 10 < float(solution.details["best_iteration"]) < 25
    assert float(solution.details["stagnated"]) == 1.0
    assert true_residual(case, FixedPoint, solution.vector) < 0.01
    with pytest.raises(UnsupportedError, match="does not converge"):
        FixedPoint(200, 1e-12).solve(case.system)
    with pytest.raises(UnsupportedError, match="does not converge"):
        FixedPoint(400).solve(rotation(1.05).system)


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_start_of_nan_or_far_away_is_left_out(make):
    spectrum = torch.linspace(0.2, 1.5, 10, dtype=F64)
    plain = make(7).solve(symmetric(spectrum).system).vector
    for start in (torch.full((10,), math.nan, dtype=F64), 1e12 * torch.ones(10, dtype=F64)):
        torch.testing.assert_close(
            make(7).solve(symmetric(spectrum, start=start).system).vector, plain
        )


@pytest.mark.parametrize("rank", [3, 4, 100])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_nystrom_of_full_rank_is_the_damped_solution(rank, dtype):
    for spectrum in ([2.0, 1.0, 0.0], [3.0, 1e-4, 1e-9], [1.0, -0.5, 2.0]):
        case = symmetric(spectrum, dtype)
        expected = torch.linalg.solve(
            case.matrix.double() + 0.1 * torch.eye(3, dtype=F64), case.rhs.double()
        )
        solution = Nystrom(rank, 0.1).solve(case.system)
        error = float((solution.vector.double() - expected).norm() / expected.norm())
        assert error < 100 * torch.finfo(dtype).eps
        assert solution.iterations == 3


def test_nystrom_of_full_rank_leaves_nothing_to_the_damping():
    case = symmetric(torch.linspace(1, 2, 8, dtype=F64))
    error = relative_error(case, Nystrom(8, 1e-14).solve(case.system).vector)
    assert error < 1e-12


def test_nystrom_refuses_a_damping_that_makes_the_matrix_singular():
    with pytest.raises(UnsupportedError, match=r"rank=7.*damping=0\.5.*3 variables singular"):
        Nystrom(7, 0.5).solve(symmetric([2.0, 1.0, -0.5]).system)


def test_the_best_iterate_is_verified_where_recurrences_may_be_off():
    case = Counted(torch.eye(2, dtype=F64), torch.ones(2, dtype=F64))
    progress = Progress(torch.zeros(2, dtype=F64), 2**0.5, case.system)
    # It claims to be better than it is.
    progress.offer(5 * torch.ones(2, dtype=F64), 0.1, 1)
    progress.verify()
    solution = progress.solution(1, 0.0)
    assert bool((solution.vector == 0).all()) and float(solution.details["stagnated"]) == 1.0
    assert case.products == 1


class Astray(GMRES):
    """Returns what is worse than zero, as a solver that somebody brings may."""

    def solve(self, system: LinearSystem):
        solution = super().solve(system)
        return type(solution)(-3 * solution.vector, solution.iterations)


def test_implicit_refuses_what_is_worse_than_zero():
    with pytest.raises(UnsupportedError, match=r"Astray returned a solution of the residual 4"):
        bank.quadratic(10.0).call(Implicit(Astray(50, 1e-12)))


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("solver", [MINRES(50, 1e-6), GMRES(50, 1e-6), NormalEquationCG(50, 1e-6)])
def test_an_outer_gradient_of_any_size_in_float32(solver, factor):
    case = bank.quadratic(3.0)
    expected = bank.quadratic_hypergradient(case)
    case.problem.model.float()
    case.problem.meta.float()
    case.train_batches = [tuple(tensor.float() for tensor in case.train_batches[0])]
    outer, case.valid_batch = case.problem.valid_loss, case.valid_batch.float()
    case.problem.valid_loss = lambda model, meta, batch: factor * outer(model, meta, batch)
    gradient = case.call(Implicit(solver)).gradient["value"].double() / factor
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4


def test_a_start_is_one_of_the_damped_system():
    spectrum = torch.linspace(0.2, 1.5, 10, dtype=F64)
    case, eye = symmetric(spectrum), torch.eye(10, dtype=F64)
    expected = torch.linalg.solve(case.matrix + 0.5 * eye, case.rhs)
    solver = ConjugateGradient(50, 1e-12, damping=0.5)
    for start in (expected, expected + 0.1 * case.rhs):
        again = symmetric(spectrum, start=start)
        solution = solver.solve(again.system)
        torch.testing.assert_close(solution.vector, expected)
        assert solution.iterations <= (1 if start is expected else 11)
    assert solver.diagonal == 0.5 and GMRES().diagonal == 0.0


def test_the_details_of_a_solution():
    case = symmetric(torch.linspace(0.2, 1.5, 10, dtype=F64))
    for solver in (ConjugateGradient(4), MINRES(4), GMRES(4), NormalEquationCG(4), Neumann(4)):
        solution = solver.solve(case.system)
        assert float(solution.details["best_iteration"]) == solution.iterations == 4
        assert float(solution.details["estimated_residual"]) == pytest.approx(
            true_residual(case, solver, solution.vector), rel=1e-6
        )
        assert "stagnated" not in solution.details


def test_products_that_round_more_than_the_vectors():
    # Of a matrix in bfloat16 no more than its rounding is to be had, and that is known.
    spectrum = torch.logspace(0, -5, 20, dtype=F64)
    case = symmetric(spectrum, F32)

    def product(x):
        return (case.matrix @ x).bfloat16().float()

    rounding = torch.finfo(torch.bfloat16).eps
    for solver in (MINRES(100, 0.0), GMRES(100, 0.0), NormalEquationCG(100, 0.0)):
        system = LinearSystem(product, product, case.rhs, rounding=rounding)
        solution = solver.solve(system)
        assert true_residual(case, solver, solution.vector) < 1.0
        assert float(solution.details["estimated_residual"]) <= 1.0


def test_nystrom_takes_the_indefinite_and_refuses_what_is_singular():
    for values in ([3.0, -1.0, 0.5], [3.0, -1.0, 0.0, 0.0, 0.0]):
        case = symmetric(values)
        damped = case.matrix + 0.3 * torch.eye(len(values), dtype=F64)
        solution = Nystrom(3, 0.3).solve(case.system)
        torch.testing.assert_close(solution.vector, torch.linalg.solve(damped, case.rhs))
    # An eigenvalue of −0.3 to the rounding of the products, of which the largest is 3.
    for value, refused in [(-0.3, True), (-0.3 + 1e-4, True), (-0.3 + 1e-2, False)]:
        case = symmetric([3.0, value])
        system = dataclasses.replace(case.system, rounding=1e-4)
        if refused:
            with pytest.raises(UnsupportedError, match=r"rank=5.*-0.3.*2 variables singular"):
                Nystrom(5, 0.3).solve(system)
        else:
            assert Nystrom(5, 0.3).solve(system).iterations == 2


def test_nystrom_refuses_what_is_exactly_at_rounding():
    # −1 + 0.5 has the size of the rounding of a product, 0.5 · 1.
    with pytest.raises(UnsupportedError, match="singular"):
        Nystrom(1, 0.5).solve(diagonal(-1.0, rounding=0.5).system)
    assert Nystrom(1, 0.5).solve(diagonal(-1.0, rounding=0.49).system).vector.tolist() == [-2.0]


def test_nystrom_leaves_out_directions_that_rounding_made():
    spectrum = torch.zeros(30, dtype=F64)
    spectrum[:3] = torch.tensor([10.0, 5.0, 2.0])
    case = symmetric(spectrum, torch.float32)
    damped = case.matrix.double() + 1e-2 * torch.eye(30, dtype=F64)
    expected = torch.linalg.solve(damped, case.rhs.double())
    for key in range(5):
        system = dataclasses.replace(case.system, key=key)
        found = Nystrom(9, 1e-2).solve(system).vector.double()
        assert float((found - expected).norm() / expected.norm()) < 1e-3
