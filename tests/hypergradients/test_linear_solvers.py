"""Solvers of linear systems against dense solutions and their theoretical rates."""

import math

import pytest
import torch

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    Neumann,
    NormalEquationCG,
    Nystrom,
    solvers,
)
from metatoolkit.testing import solver_checks
from metatoolkit.testing.linear_systems import relative_error, rotation, symmetric

F64 = torch.float64


EXACT = [
    ConjugateGradient(1000, 1e-13),
    NormalEquationCG(1000, 1e-13),
    MINRES(1000, 1e-13),
    GMRES(1000, 1e-13),
    GMRES(1000, 1e-13, restart=5),
    Neumann(3000, 1e-13),
]


# With what each is to reach.
CONFORMING = {solver: 1e-11 for solver in (*EXACT, FixedPoint(3000, 1e-13))} | {Nystrom(20): 1e-8}


def test_every_registered_solver_is_under_test():
    # Tests register solvers of their own.
    ours = {one for one in solvers.values() if one.__module__.startswith("metatoolkit.")}
    assert {type(solver) for solver in CONFORMING} == ours


@pytest.mark.parametrize(
    ("solver", "check"),
    [(solver, check) for solver, limit in CONFORMING.items() for check in solver_checks(limit)],
    ids=str,
)
def test_conforms(solver, check):
    if reason := check(lambda: solver):
        pytest.skip(reason)


@pytest.mark.parametrize("solver", EXACT, ids=repr)
def test_a_multiple_of_the_identity_takes_no_more_than_two_iterations(solver):
    assert solver.solve(symmetric([0.3] * 20).system).iterations <= 2


@pytest.mark.parametrize("solver", [s for s in EXACT if not isinstance(s, Neumann)], ids=repr)
def test_an_ill_conditioned_system(solver):
    case = symmetric(torch.logspace(-5, 0, 12, dtype=F64))
    error = relative_error(case, solver.solve(case.system).vector)
    # With the condition number 1e5 the normal equations have 1e10.
    limit = {GMRES: 1e-7, NormalEquationCG: 1e-4}.get(type(solver), 1e-7)
    if getattr(solver, "restart", None) is None:
        assert error < limit
    else:
        assert error < 1.0


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
def test_conjugate_gradient_converges_at_its_rate(condition):
    # Chebyshev nodes are the spectrum for which the bound is met up to a constant.
    size = 60
    nodes = torch.cos((torch.arange(size, dtype=F64) + 0.5) * math.pi / size)
    case = symmetric(((condition + 1) + (condition - 1) * nodes) / 2)
    rate = (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
    first = case.solution.dot(case.rhs).sqrt()
    for iterations in (1, 2, 5, 10, 20, 30):
        x = ConjugateGradient(iterations, 0.0).solve(case.system).vector
        error = x - case.solution
        in_norm = float(error.dot(case.matrix @ error).clamp_min(0).sqrt() / first)
        assert in_norm <= 2 * rate**iterations + 1e-8
        if condition > 1:
            assert in_norm >= 0.1 * rate**iterations - 1e-8 or iterations > 20


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_normal_equations_converge_at_their_rate(condition):
    case = symmetric(torch.linspace(1, condition, 40, dtype=F64))
    rate = (condition - 1) / (condition + 1)
    for iterations in (1, 5, 20, 40):
        x = NormalEquationCG(iterations, 0.0).solve(case.system).vector
        residual = float((case.rhs - case.matrix @ x).norm() / case.rhs.norm())
        assert residual <= 2 * rate**iterations + 1e-12


def test_minres_converges_at_its_rate_on_an_indefinite_matrix():
    positive = torch.linspace(1, 10, 15, dtype=F64)
    case = symmetric(torch.cat([positive, -positive]))
    for iterations in (2, 6, 10, 20):
        x = MINRES(iterations, 0.0).solve(case.system).vector
        residual = float((case.rhs - case.matrix @ x).norm() / case.rhs.norm())
        # Two intervals [−b, −a] and [a, b] behave as one of condition (b/a)² in half the steps.
        assert residual <= 2 * (9 / 11) ** (iterations // 2) + 1e-12
    assert relative_error(case, MINRES(100, 1e-13).solve(case.system).vector) < 1e-11


@pytest.mark.parametrize("start", [False, True])
def test_minres_is_gmres_on_symmetric_matrices(start):
    case = symmetric(torch.linspace(-3, 7, 25, dtype=F64))
    if start:
        case = symmetric(torch.linspace(-3, 7, 25, dtype=F64), start=torch.ones(25, dtype=F64))
    for iterations in (1, 2, 3, 7, 15):
        one = MINRES(iterations, 0.0).solve(case.system).vector
        other = GMRES(iterations, 0.0).solve(case.system).vector
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_gmres_minimizes_the_residual_over_the_krylov_space():
    case = rotation(0.9, 8)
    for iterations in (1, 3, 5):
        powers = [case.rhs]
        for _ in range(iterations - 1):
            powers.append(case.matrix @ powers[-1])
        space = torch.stack(powers, 1)
        weights = torch.linalg.lstsq(case.matrix @ space, case.rhs.unsqueeze(1)).solution
        expected = (space @ weights).squeeze(1)
        x = GMRES(iterations, 0.0).solve(case.system).vector
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [GMRES(50, 1e-13), NormalEquationCG(100, 1e-13)], ids=repr)
def test_maps_that_are_no_contraction(solver):
    case = rotation(2.5)
    assert relative_error(case, solver.solve(case.system).vector) < 1e-11
    with pytest.raises(
        UnsupportedError, match=r"Lower the inner learning rate.*GMRES or NormalEquationCG"
    ):
        FixedPoint(50).solve(case.system)


@pytest.mark.parametrize("modulus", [0.5, 0.9])
def test_fixed_point_converges_at_the_rate_of_the_map(modulus):
    case = rotation(modulus)
    for iterations in (1, 10, 40):
        solution = FixedPoint(iterations, 0.0).solve(case.system)
        # A is a multiple of an orthogonal matrix: each step shrinks the error by its modulus.
        assert relative_error(case, solution.vector) == pytest.approx(
            modulus**iterations, rel=1e-6, abs=1e-14
        )
        assert solution.iterations == iterations


def test_neumann_converges_at_its_rate():
    eigenvalues = torch.linspace(1, 20, 30, dtype=F64)
    case = symmetric(eigenvalues)
    solution = Neumann(400, 0.0, step_size=1 / 20).solve(case.system)
    for iterations in (1, 10, 100):
        x = Neumann(iterations, 0.0, step_size=1 / 20).solve(case.system).vector
        assert relative_error(case, x) <= (1 - 1 / 20) ** iterations
    ratio = relative_error(case, solution.vector) / relative_error(
        case, Neumann(300, 0.0, step_size=1 / 20).solve(case.system).vector
    )
    assert ratio == pytest.approx((1 - 1 / 20) ** 100, rel=1e-3)


def test_neumann_estimates_the_largest_eigenvalue_and_warns_of_none_too_small():
    case = symmetric(torch.linspace(0.1, 2.67, 20, dtype=F64))
    solution = Neumann(2000, 1e-12).solve(case.system)
    assert relative_error(case, solution.vector) < 1e-10
    largest = float(solution.details["largest_eigenvalue"])
    assert 0.8 * 2.67 < largest <= 2.67 * (1 + 1e-12)
    assert float(solution.details["step_size"]) == pytest.approx(1 / largest)


@pytest.mark.parametrize("iterations", [3, 10, 1000])
def test_a_neumann_series_that_diverges_is_an_error(iterations):
    case = symmetric(torch.linspace(0.1, 2.67, 20, dtype=F64))
    with pytest.raises(
        UnsupportedError, match=r"does not converge at step_size=1.*Lower step_size"
    ):
        Neumann(iterations, step_size=1.0).solve(case.system)


def test_conjugate_gradient_notices_negative_curvature():
    case = symmetric([4.0, 3.0, 2.0, 1.0, -1.0])
    with pytest.raises(UnsupportedError, match=r"curvature.*MINRES"):
        ConjugateGradient(20).solve(case.system)
    solution = ConjugateGradient(20, negative_curvature="stop").solve(case.system)
    assert float(solution.details["negative_curvature"]) < 0
    assert bool(torch.isfinite(solution.vector).all())
    damped = ConjugateGradient(20, 1e-12, damping=1.5).solve(case.system)
    expected = torch.linalg.solve(case.matrix + 1.5 * torch.eye(5, dtype=F64), case.rhs)
    torch.testing.assert_close(damped.vector, expected, rtol=1e-9, atol=1e-9)
    assert relative_error(case, MINRES(20, 1e-12).solve(case.system).vector) < 1e-10


def test_conjugate_gradient_notices_a_singular_matrix():
    case = symmetric([2.0, 1.0, 0.0])
    with pytest.raises(UnsupportedError, match="curvature"):
        ConjugateGradient(20, 1e-12).solve(case.system)


@pytest.mark.parametrize(
    "solver",
    [ConjugateGradient(400, 0.0), NormalEquationCG(400, 0.0), MINRES(400, 0.0), GMRES(400, 0.0)],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3])
def test_goes_on_to_rounding_without_a_tolerance(condition, solver):
    case = symmetric(torch.logspace(0, math.log10(condition), 12) / condition)
    solution = solver.solve(case.system)
    assert float((solution.vector - case.solution).norm() / case.solution.norm()) < 1e-11


def test_damped_normal_equations():
    case = symmetric([2.0, 1.0, 0.0])
    x = NormalEquationCG(50, 0.0, damping=0.1).solve(case.system).vector
    normal = case.matrix.T @ case.matrix + 0.1 * torch.eye(3, dtype=F64)
    torch.testing.assert_close(
        x, torch.linalg.solve(normal, case.matrix.T @ case.rhs), rtol=1e-9, atol=1e-9
    )


def test_nystrom_is_exact_for_low_rank_and_damped_beyond():
    eigenvalues = torch.zeros(30, dtype=F64)
    eigenvalues[:5] = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5])
    case = symmetric(eigenvalues)
    expected = torch.linalg.solve(case.matrix + 1e-2 * torch.eye(30, dtype=F64), case.rhs)
    for rank in (5, 8, 30, 100):
        solution = Nystrom(rank, 1e-2).solve(case.system)
        torch.testing.assert_close(solution.vector, expected, rtol=1e-8, atol=1e-8)
        assert solution.iterations == min(rank, 30)
    error = Nystrom(2, 1e-2).solve(case.system).vector - expected
    assert float(error.norm() / expected.norm()) > 1e-6


def test_nystrom_error_falls_with_the_rank():
    case = symmetric(2.0 ** -torch.arange(40, dtype=F64))
    expected = torch.linalg.solve(case.matrix + 1e-4 * torch.eye(40, dtype=F64), case.rhs)
    errors = [
        float((Nystrom(rank, 1e-4).solve(case.system).vector - expected).norm() / expected.norm())
        for rank in (5, 15, 40)
    ]
    assert errors[0] > errors[1] > 10 * errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize(
    ("solver", "products", "transposed"),
    [
        (ConjugateGradient(7, 0.0), 7, 0),
        (MINRES(7, 0.0), 7, 0),
        (GMRES(7, 0.0), 7, 0),
        (GMRES(7, 0.0, restart=4), 8, 0),
        (NormalEquationCG(7, 0.0), 7, 8),
        (Neumann(7, 0.0, power_iterations=4), 11, 0),
        (Neumann(7, 0.0, step_size=0.1), 7, 0),
        (FixedPoint(7, 0.0), 7, 0),
        (Nystrom(7), 7, 0),
    ],
    ids=repr,
)
def test_number_of_products(solver, products, transposed):
    case = symmetric(torch.linspace(0.1, 1.5, 30, dtype=F64))
    assert solver.solve(case.system).iterations == 7
    assert (case.products, case.transposed) == (products, transposed)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ConjugateGradient(0), "iterations"),
        (lambda: ConjugateGradient(tolerance=1.0), "tolerance"),
        (lambda: ConjugateGradient(damping=-1.0), "damping"),
        (lambda: ConjugateGradient(negative_curvature="ignore"), "negative_curvature"),
        (lambda: NormalEquationCG(damping=math.inf), "damping"),
        (lambda: MINRES(-1), "iterations"),
        (lambda: GMRES(restart=0), "restart"),
        (lambda: Neumann(step_size=0.0), "step_size"),
        (lambda: Neumann(power_iterations=0), "power_iterations"),
        (lambda: FixedPoint(tolerance=-1e-3), "tolerance"),
        (lambda: Nystrom(0), "rank"),
        (lambda: Nystrom(damping=0.0), "damping"),
    ],
)
def test_arguments_out_of_range(build, name):
    with pytest.raises(ConfigurationError, match=name):
        build()
