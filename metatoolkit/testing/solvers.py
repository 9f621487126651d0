"""What must hold for every linear solver."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from metatoolkit.hypergradients.implicit import Implicit
from metatoolkit.hypergradients.linear_solvers.base import LinearSolver, Solution
from metatoolkit.randomness import has_moved, place, seeded
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Check, ConformanceReport, Make, Suite
from metatoolkit.testing.expectations import Inapplicable, expect, expect_equal, stored
from metatoolkit.testing.linear_systems import F64, Counted, contraction, rotation, symmetric

_SUITE: Suite[LinearSolver] = Suite("linear solver", LinearSolver)


@_SUITE.check(condition=(1.0, 10.0, 50.0))
def solves_a_positive_definite_system(
    make: Make[LinearSolver], condition: float, accuracy: float
) -> None:
    """The solution of a dense system of 20 unknowns, with what the solver adds to its diagonal."""
    system = symmetric(torch.linspace(1, condition, 20, dtype=F64) * 0.3)
    _expect_solved(make(), system, accuracy)


@_SUITE.check()
def solves_a_system_of_one_unknown(make: Make[LinearSolver], accuracy: float) -> None:
    """A number divided by a number."""
    _expect_solved(make(), symmetric([0.7]), accuracy)


@_SUITE.check()
def solves_a_system_that_is_not_symmetric(make: Make[LinearSolver], accuracy: float) -> None:
    """Unless ``symmetric`` says that it may not be: I − A with A a contraction, normal and not."""
    solver = make()
    if solver.symmetric:
        raise Inapplicable("the solver says that systems must be symmetric")
    for system in (rotation(0.5), contraction(0.5)):
        _expect_solved(make(), system, accuracy)


@_SUITE.check()
def is_no_worse_than_zero(make: Make[LinearSolver]) -> None:
    """An ill-conditioned system leaves a residual that is at most the right-hand side."""
    solver = make()
    system = symmetric(torch.logspace(-5, 0, 12, dtype=F64))
    x = solver.solve(system.system).vector
    left = system.rhs - system.matrix @ x - solver.diagonal * x
    ratio = float(left.norm() / system.rhs.norm())
    expect(ratio <= 1 + 1e-12, "a residual of at most the right-hand side", f"{ratio:.3g} of it")


@_SUITE.check(dtype=(torch.float32, torch.float64))
def a_zero_right_hand_side_has_the_solution_zero(
    make: Make[LinearSolver], dtype: torch.dtype
) -> None:
    """Nothing is divided by the norm of b."""
    matrix = symmetric([0.5, 1.0, 1.5], dtype).matrix
    x = make().solve(Counted(matrix, torch.zeros(3, dtype=dtype)).system).vector
    expect_equal("the solution", x, torch.zeros(3, dtype=dtype))
    expect(x.dtype == dtype, f"a solution in {dtype}", x.dtype)


@_SUITE.check()
def float32_stays_float32(make: Make[LinearSolver], accuracy: float) -> None:
    """The solution has the type of the right-hand side, and its precision."""
    system = symmetric(torch.linspace(0.3, 3, 20), torch.float32)
    solution = _expect_solved(make(), system, max(accuracy, 1e-5))
    expect(solution.vector.dtype == torch.float32, "float32", solution.vector.dtype)


@_SUITE.check()
def a_start_at_the_solution_ends_at_once(make: Make[LinearSolver], accuracy: float) -> None:
    """A first iterate is used, or ``warm_startable`` says that it is not."""
    solver = make()
    eigenvalues = torch.linspace(0.2, 1.5, 10, dtype=F64)
    plain = symmetric(eigenvalues)
    wanted = _dense(solver, plain)
    at_solution = symmetric(eigenvalues, start=wanted)
    rough = symmetric(eigenvalues, start=wanted + 0.1 * plain.rhs)
    if not solver.warm_startable:
        x = solver.solve(plain.system).vector
        expect_equal("the solution from a start", make().solve(rough.system).vector, x)
        return
    solution = _expect_solved(solver, at_solution, 0.1 * accuracy)
    done = solution.iterations
    ends = "at most one iteration from the solution itself, or warm_startable = False"
    expect(done <= 1, ends, f"{done} iterations")
    _expect_solved(make(), rough, accuracy)


@_SUITE.check()
def leaves_the_system_as_it_was(make: Make[LinearSolver]) -> None:
    """Right-hand side, first iterate and the global random state stay, and no graph is left."""
    start = torch.linspace(0, 1, 10, dtype=F64)
    system = symmetric(torch.linspace(0.2, 1.5, 10, dtype=F64), start=start)
    before = start.clone(), system.rhs.clone()
    with seeded(9):
        there = place()
        solution = make().solve(system.system)
        expect(not has_moved(there), "the global random state as before", "another")
    expect_equal("the start", start, before[0])
    expect_equal("the right-hand side", system.rhs, before[1])
    expect(not solution.vector.requires_grad, "a solution without a graph", "one with a graph")
    shape = tuple(solution.vector.shape)
    expect(shape == (10,), "a solution of shape (10,)", shape)
    expect(solution.iterations >= 0, "a number of iterations", solution.iterations)
    for name, value in solution.details.items():
        expect(value.dim() == 0, f"a 0-d tensor for the detail {name!r}", tuple(value.shape))


@_SUITE.check()
def what_is_random_comes_from_the_key(make: Make[LinearSolver], accuracy: float) -> None:
    """The same key gives the same solution; without ``random`` any key does, to the accuracy."""
    eigenvalues = torch.linspace(0.2, 1.5, 10, dtype=F64)
    found = []
    for seed, key in ((1, 7), (2, 7), (2, 8)):
        with seeded(seed):
            found.append(make().solve(symmetric(eigenvalues, key=key).system).vector)
    expect_equal("the solution under another global seed", found[1], found[0])
    if not make().random:
        off = float((found[2] - found[0]).norm() / found[0].norm())
        expect(off <= accuracy, "the same solution under another key, without `random`", off)


@_SUITE.check()
def can_be_copied(make: Make[LinearSolver]) -> None:
    """A copy solves as the solver does."""
    system = symmetric(torch.linspace(0.2, 1.5, 10, dtype=F64)).system
    wanted = make().solve(system).vector
    expect_equal("the solution of a copy", copy.deepcopy(make()).solve(system).vector, wanted)


@_SUITE.check()
def can_be_pickled(make: Make[LinearSolver]) -> None:
    """A solver that was stored solves as it did."""
    system = symmetric(torch.linspace(0.2, 1.5, 10, dtype=F64)).system
    wanted = make().solve(system).vector
    expect_equal("the solution of a stored solver", stored(make()).solve(system).vector, wanted)


@_SUITE.check()
def gives_the_implicit_hypergradient_at_an_optimum(
    make: Make[LinearSolver], accuracy: float
) -> None:
    """``Implicit(solver)`` is the closed form on a quadratic problem of 12 parameters."""
    if make().diagonal != 0:
        raise Inapplicable("the solver adds to the diagonal")
    instance = bank.quadratic(10.0)
    found = instance.call(Implicit(make())).gradient["value"]
    wanted = bank.quadratic_hypergradient(instance)
    off = float((found - wanted).norm() / wanted.norm())
    expect(off <= 100 * accuracy, f"a relative error of at most {100 * accuracy:.1e}", off)


def _dense(solver: LinearSolver, system: Counted) -> Tensor:
    """Return the solution of the system that a solver solves."""
    added = solver.diagonal * torch.eye(len(system.rhs), dtype=system.rhs.dtype)
    return torch.linalg.solve(system.matrix + added, system.rhs)


def _expect_solved(solver: LinearSolver, system: Counted, accuracy: float) -> Solution:
    wanted = _dense(solver, system)
    solution = solver.solve(system.system)
    off = float((solution.vector - wanted).norm() / wanted.norm())
    told = f"{off:.2e} after {solution.iterations} iterations"
    expect(off <= accuracy, f"a relative error of at most {accuracy:.1e}", told)
    return solution


def solver_checks(accuracy: float = 1e-6) -> list[Check[LinearSolver]]:
    """Return the checks of :func:`check_solver`, to parametrize tests over.

    Each is called with a function that makes the solver, and returns why it does not apply, or an
    empty text.

    Args:
        accuracy: As there.
    """
    return _SUITE.given(accuracy=accuracy).checks


def check_solver(
    solver: LinearSolver | Make[LinearSolver],
    accuracy: float = 1e-6,
    checks: Sequence[str] | None = None,
) -> ConformanceReport:
    """Check that a linear solver does what every one must, published or not.

    It solves well-conditioned dense systems, those that are not symmetric unless it says that it
    cannot, in float64 and float32; zero is solved by zero; a start at the solution ends at once; an
    ill-conditioned system leaves nothing that is worse than zero; what it is given stays; what is
    random comes from the key of the system; ``Implicit`` with it is the closed form at an optimum.

    Args:
        solver: The solver, of which each check gets a copy, or what makes one, with as many
            iterations as the accuracy takes. It refuses a system that is none for it by
            :class:`~metatoolkit.errors.UnsupportedError`.
        accuracy: Relative error that it is to reach where the condition number is at most 50.
        checks: Patterns of the names of checks to run; by default all.

    Returns:
        Which checks hold, and why others do not apply.

    Raises:
        ConformanceError: A check does not hold, or none applies; it names the check.
        ConfigurationError: What is given is no linear solver.
        UnknownNameError: A pattern matches no check.
    """
    return _SUITE.given(accuracy=accuracy).run(solver, checks)
