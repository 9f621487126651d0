"""Solvers at their edges: options left out, zero, tiny, and what rounding leaves."""

import dataclasses
import math

import pytest
import torch

from metatoolkit.errors import ConfigurationError, UnsupportedError
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
from metatoolkit.hypergradients.linear_solvers.base import LinearSolver, check_iteration
from metatoolkit.hypergradients.linear_solvers.progress import Progress
from metatoolkit.testing.linear_systems import Counted, symmetric

F64 = torch.float64
KRYLOV = [ConjugateGradient(9, 0.0), MINRES(9, 0.0), GMRES(9, 0.0), NormalEquationCG(9, 0.0)]
NAMES = [type(solver).__name__ for solver in KRYLOV]
WHOLE = {
    ConjugateGradient: (50, 1e-6, 0.0, "error"),
    NormalEquationCG: (50, 1e-6, 0.0),
    MINRES: (50, 1e-6),
    GMRES: (50, 1e-6, None),
    Neumann: (50, 1e-6, None, 10),
    FixedPoint: (50, 1e-6),
    Nystrom: (10, 0.01),
}


def diagonal(*values, rhs=None, **options):
    """A diagonal system with a right-hand side of ones."""
    matrix = torch.tensor(values, dtype=F64).diag()
    rhs = torch.ones(len(values), dtype=F64) if rhs is None else torch.tensor(rhs, dtype=F64)
    case = Counted(matrix, rhs)
    case.system = dataclasses.replace(case.system, **options)
    return case


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
def test_options_that_are_left_out(kind):
    assert dataclasses.astuple(kind()) == WHOLE[kind]


def test_a_system_begins_at_zero_with_the_rounding_of_its_type():
    rhs = torch.ones(2)
    system = LinearSystem(lambda x: x, lambda x: x, rhs)
    assert (system.start, system.key, system.rounding) == (None, 0, None)
    assert system.eps == torch.finfo(torch.float32).eps
    assert dataclasses.replace(system, rounding=1e-3).eps == 1e-3
    # Products may not round less than the vectors that they are made of.
    assert dataclasses.replace(system, rounding=1e-9).eps == torch.finfo(torch.float32).eps
    assert system.damped(0.0) is system


def test_a_damped_system_adds_to_both_products():
    case = Counted(torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=F64), torch.ones(2, dtype=F64))
    damped = case.system.damped(0.5)
    assert damped.product(torch.ones(2, dtype=F64)).tolist() == [3.5, 3.5]
    assert damped.transposed_product(torch.ones(2, dtype=F64)).tolist() == [1.5, 5.5]


def test_the_first_iterate_and_its_residual_are_the_callers_to_change():
    for start in (None, torch.full((2,), 0.5, dtype=F64)):
        case = diagonal(1.0, 1.0, start=start)
        for tensor in case.system.first_residual():
            tensor.add_(7.0)
        assert case.rhs.tolist() == [1.0, 1.0]
        assert start is None or start.tolist() == [0.5, 0.5]
    # As good as zero is good enough: x = 2 leaves −1 of 1.
    x, residual = diagonal(1.0, start=torch.tensor([2.0], dtype=F64)).system.first_residual()
    assert (x.tolist(), residual.tolist()) == ([2.0], [-1.0])


@pytest.mark.parametrize(
    ("kind", "symmetric", "warm_startable", "random"),
    [
        (ConjugateGradient, True, True, False),
        (MINRES, True, True, False),
        (Nystrom, True, False, True),
        (GMRES, False, True, False),
        (NormalEquationCG, False, True, False),
        (Neumann, False, True, False),
        (FixedPoint, False, True, False),
        (LinearSolver, False, True, False),
    ],
)
def test_what_a_solver_needs(kind, symmetric, warm_startable, random):
    assert kind.symmetric is symmetric
    assert kind.warm_startable is warm_startable
    assert kind.random is random
    if kind is not LinearSolver:
        assert kind().diagonal == (0.01 if kind is Nystrom else 0.0)


def test_the_least_and_largest_arguments():
    check_iteration(1, 0.0)
    check_iteration(1, 0.999, 1e300)
    for arguments in [(0, 0.1), (1, -1e-9), (1, 1.0), (1, math.nan), (1, 0.1, -1e-9)]:
        with pytest.raises(ConfigurationError):
            check_iteration(*arguments)
    for damping in (math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="damping"):
            check_iteration(1, 0.1, damping)
        with pytest.raises(ConfigurationError, match="damping"):
            Nystrom(damping=damping)
        with pytest.raises(ConfigurationError, match="step_size"):
            Neumann(step_size=damping)
    assert (GMRES(restart=1).restart, Nystrom(1).rank) == (1, 1)
    assert Neumann(power_iterations=1).power_iterations == 1
    for solver in (ConjugateGradient(1), MINRES(1), GMRES(1), NormalEquationCG(1), FixedPoint(1)):
        assert solver.solve(diagonal(1.0).system).vector.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("solver", [*KRYLOV, FixedPoint(9, 0.0)], ids=[*NAMES, "FixedPoint"])
def test_nothing_is_multiplied_where_nothing_is_left(solver):
    case = diagonal(0.5, 1.0, 1.5, rhs=[0.0, 0.0, 0.0])
    solution = solver.solve(case.system)
    assert (case.products, solution.iterations) == (0, 0)
    assert float(solution.details["estimated_residual"]) == 0.0
    assert "stagnated" not in solution.details


@pytest.mark.parametrize("solver", KRYLOV, ids=NAMES)
def test_what_rounding_leaves_is_told(solver):
    # x = b / 10 in one iteration, and rounding leaves eps ‖M‖ ‖x‖ = eps ‖b‖.
    solution = solver.solve(diagonal(10.0, 10.0, 10.0, rounding=1e-3).system)
    assert solution.vector.tolist() == pytest.approx([0.1] * 3)
    assert solution.iterations == 1
    assert float(solution.details["estimated_residual"]) == pytest.approx(1e-3, rel=1e-6)
    assert float(solution.details["stagnated"]) == 1.0


@pytest.mark.parametrize("solver", KRYLOV, ids=NAMES)
def test_an_iterate_that_rounding_spoils_is_not_taken(solver):
    # x = (1, 10) has the residual 0 up to 0.02 · 10; the iterate before leaves about 0.09 + 0.02.
    case = diagonal(1.0, 0.01, rhs=[1.0, 0.1], rounding=0.02)
    solution = solver.solve(case.system)
    assert float(solution.vector.norm()) < 3.0
    left = float((case.rhs - case.matrix @ solution.vector).norm() / case.rhs.norm())
    told = float(solution.details["estimated_residual"])
    assert left < told < 0.12
    # What is told has the rounding in it: eps ‖M‖ ‖x‖, with ‖M‖ of about 1.
    added = 0.02 * float(solution.vector.norm() / case.rhs.norm())
    assert told == pytest.approx(left + added, rel=1e-2)
    spoiled = type(solver)(9, 0.0).solve(diagonal(1.0, 0.01, rhs=[1.0, 0.1]).system)
    assert spoiled.vector.tolist() == pytest.approx([1.0, 10.0])


@pytest.mark.parametrize("kind", [type(s) for s in KRYLOV] + [FixedPoint, Neumann])
@pytest.mark.parametrize("factor", [1.0, 1e4, 1e-4])
def test_the_tolerance_is_relative_and_ends_the_iteration(kind, factor):
    case = symmetric(torch.linspace(0.4, 1.6, 12, dtype=F64))
    options = {"step_size": 0.6} if kind is Neumann else {}
    residuals = []
    while not residuals or residuals[-1] > 1e-3:
        x = kind(len(residuals) + 1, 0.0, **options).solve(case.system).vector
        residuals.append(float((case.rhs - case.matrix @ x).norm() / case.rhs.norm()))
    scaled = Counted(case.matrix, factor * case.rhs)
    solution = kind(50, 1e-3, **options).solve(scaled.system)
    assert solution.iterations == len(residuals)
    assert scaled.products == len(residuals) + (kind is GMRES)
    told = float(solution.details["estimated_residual"])
    assert told == pytest.approx(residuals[-1], rel=1e-6)


def test_normal_equations_without_a_gradient_end_at_once():
    case = diagonal(1.0, 0.0, rhs=[0.0, 1.0])
    solution = NormalEquationCG(9, 1e-6).solve(case.system)
    assert (case.products, case.transposed, solution.iterations) == (0, 1, 0)
    assert float(solution.details["stagnated"]) == 1.0 and not solution.vector.any()


def test_what_rounding_leaves_of_damped_normal_equations():
    # Their matrix is 100 + 300, and their right-hand side 10 b.
    solver = NormalEquationCG(9, 0.0, damping=300.0)
    solution = solver.solve(diagonal(10.0, 10.0, rounding=1e-3).system)
    assert solution.vector.tolist() == pytest.approx([10 / 400] * 2)
    assert float(solution.details["estimated_residual"]) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_conjugate_gradient_tells_the_curvature_that_it_met(damping):
    solver = ConjugateGradient(9, damping=damping, negative_curvature="stop")
    solution = solver.solve(diagonal(-2.0, -2.0).system)
    assert float(solution.details["negative_curvature"]) == pytest.approx(-2.0 + damping)
    assert solution.iterations == 0 and not solution.vector.any()
    message = rf"curvature {-2 + damping:.3g} with damping={damping}:"
    with pytest.raises(UnsupportedError, match=message):
        ConjugateGradient(9, damping=damping).solve(diagonal(-2.0, -2.0).system)


def test_conjugate_gradient_stops_with_the_iterate_before_a_negative_curvature():
    case = diagonal(2.0, -1.0, rhs=[1.0, 0.5])
    solution = ConjugateGradient(9, negative_curvature="stop").solve(case.system)
    # One step along b; the second direction is conjugate to it, a multiple of (0.5, 2).
    expected = 1.25 / 1.75 * case.rhs
    torch.testing.assert_close(solution.vector, expected)
    assert (solution.iterations, case.products) == (1, 2)
    curvature = (2 * 0.5**2 - 2.0**2) / (0.5**2 + 2.0**2)
    assert float(solution.details["negative_curvature"]) == pytest.approx(curvature)


def test_conjugate_gradient_draws_no_conclusion_from_rounding():
    # Where products are nothing but rounding, a curvature tells nothing of M.
    for value in (1.0, -1.0):
        solution = ConjugateGradient(9).solve(diagonal(value, rounding=1.0).system)
        assert solution.iterations == 0 and float(solution.vector) == 0.0


@pytest.mark.parametrize(
    ("smallest", "verified", "best"),
    [(3e-7, False, 2), (5e-8, True, 2), (1e-9, True, 2), (1e-10, True, 1)],
)
def test_minres_verifies_what_its_directions_may_have_spoiled(smallest, verified, best):
    case = diagonal(1.0, smallest)
    solution = MINRES(9, 1e-12).solve(case.system)
    assert case.products == 2 + verified
    assert float(solution.details["best_iteration"]) == best
    if best == 2:
        torch.testing.assert_close(solution.vector, case.solution, rtol=1e-6, atol=0)
    else:
        # Its error may be all that there is: what was found before is returned, and told.
        assert float((case.rhs - case.matrix @ solution.vector).norm()) < 2**0.5
        assert float(solution.details["stagnated"]) == 1.0


def test_minres_stops_at_a_pivot_of_rounding():
    # The product of both pivots is 1e-3, and the first is 1/√2.
    solution = MINRES(9, 0.0).solve(diagonal(1.0, 1e-3, rounding=0.02).system)
    assert solution.iterations == 1 and float(solution.details["stagnated"]) == 1.0
    assert MINRES(9, 0.0).solve(diagonal(1.0, 1e-3, rounding=1e-4).system).iterations == 2
    nothing = MINRES(9, 0.0).solve(diagonal(0.0, 0.0).system)
    assert nothing.iterations == 0 and not nothing.vector.any()
    assert float(nothing.details["stagnated"]) == 1.0


def test_normal_equations_whose_curvature_underflows_have_stagnated():
    # ‖Mᵀ b‖² is the least that float64 holds, and ‖M Mᵀ b‖² is less.
    solution = NormalEquationCG(9, 1e-6).solve(diagonal(1e-3, rhs=[1e-157]).system)
    assert solution.iterations == 0 and not solution.vector.any()
    assert float(solution.details["stagnated"]) == 1.0


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_neumann_estimates_by_power_iteration(iterations):
    case = symmetric(torch.linspace(0.5, 4, 8, dtype=F64))
    generator = torch.Generator().manual_seed(7)
    vector = torch.randn(8, generator=generator, dtype=F64)
    powers = [torch.linalg.matrix_power(case.matrix, n) @ vector for n in range(iterations + 1)]
    expected = float(powers[-1].norm() / powers[-2].norm())
    details = Neumann(3, 0.0, power_iterations=iterations).solve(case.system).details
    assert float(details["largest_eigenvalue"]) == pytest.approx(expected, rel=1e-12)
    assert float(details["step_size"]) == pytest.approx(1 / expected, rel=1e-12)


def test_neumann_of_the_matrix_zero():
    solution = Neumann(3, 1e-6).solve(diagonal(0.0, 0.0).system)
    assert float(solution.details["largest_eigenvalue"]) == 0.0
    assert float(solution.details["step_size"]) == 1.0
    assert float(solution.details["stagnated"]) == 1.0 and not solution.vector.any()


def test_the_key_of_the_system_draws_the_directions():
    case = symmetric(2.0 ** -torch.arange(12, dtype=F64))

    def solve(**options):
        return Nystrom(4, 1e-2).solve(dataclasses.replace(case.system, **options)).vector

    assert torch.equal(solve(), solve()) and not torch.equal(solve(), solve(key=8))
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(12, 4, generator=generator, dtype=F64)
    images = case.matrix @ drawn
    approximation = images @ torch.linalg.inv(drawn.T @ images) @ images.T
    expected = torch.linalg.solve(approximation + 1e-2 * torch.eye(12, dtype=F64), case.rhs)
    torch.testing.assert_close(solve(), expected, rtol=1e-7, atol=1e-7)


def test_a_first_iterate_that_is_the_best_stays_so():
    case = diagonal(1.0, 1.0)
    progress = Progress(torch.zeros(2, dtype=F64), 2**0.5, case.system)
    progress.verify()
    solution = progress.solution(3, 0.0, other=5.0)
    assert {name: float(value) for name, value in solution.details.items()} == {
        "best_iteration": 0.0,
        "estimated_residual": pytest.approx(1.0),
        "other": 5.0,
    }
    assert solution.iterations == 3 and case.products == 1


def test_progress_compares_by_residual_and_rounding():
    case = diagonal(1.0, rounding=0.1)
    vectors = [torch.tensor([value], dtype=F64) for value in (0.0, 1.0, 3.0)]
    progress = Progress(vectors[0], 1.0, case.system, scale=4.0)
    progress.see(2.0)
    progress.see(1.0)
    assert progress.norm == 2.0 and progress.floor(3.0) == pytest.approx(0.6)
    # 0.5 + 0.1 · 2 · 1 is better than 1, and 0.3 + 0.1 · 2 · 3 is not better than 0.7.
    assert progress.offer(vectors[1], 0.5, 1) and not progress.offer(vectors[2], 0.3, 2)
    solution = progress.solution(2, 0.7)
    assert float(solution.vector) == 1.0 and float(solution.details["best_iteration"]) == 1.0
    assert float(solution.details["estimated_residual"]) == pytest.approx(0.7 / 4)
    # Stagnation counts above the target alone.
    assert progress.stagnated
    assert "stagnated" in progress.solution(2, 0.69).details
    assert "stagnated" not in progress.solution(2, 0.71).details
    unknown = Progress(vectors[0], math.nan, case.system)
    assert unknown.improves(1e30, 0.0) and not unknown.improves(math.nan, 0.0)
    # Exactly at what rounding leaves, no iteration is of use any more.
    progress = Progress(vectors[0], 1.0, case.system)
    progress.see(2.0)
    assert not progress.offer(vectors[1], progress.floor(1.0), 1)
