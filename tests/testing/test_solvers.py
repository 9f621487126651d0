"""Each check of linear solvers finds a solver that is wrong in its way."""

import dataclasses

import numpy as np
import pytest
import torch

from metatoolkit.errors import ConfigurationError, ConformanceError, UnsupportedError
from metatoolkit.hypergradients.linear_solvers import GMRES, LinearSolver, Solution
from metatoolkit.testing import check_solver, solver_checks
from metatoolkit.testing.linear_systems import (
    Counted,
    contraction,
    relative_error,
    rotation,
    symmetric,
)

F64 = torch.float64


def wrong(change, **fields):
    """A solver whose solution is changed; ``change`` gets the system and the vector."""

    def solve(self, system):
        solution = GMRES(100, 1e-10).solve(system)
        return dataclasses.replace(solution, vector=change(system, solution.vector))

    return type("Wrong", (LinearSolver,), {"__module__": __name__, "solve": solve, **fields})


def noisy(system, x):
    return x * (1 + 1e-3 * torch.rand(()))


def keyed(system, x):
    return x * (1 + 1e-3 * (system.key % 2))


def without_start(self, system):
    return GMRES(100, 1e-10).solve(dataclasses.replace(system, start=None))


def spoils(system, x):
    if system.start is not None:
        system.start.zero_()
    return x


def touches(system, x):
    torch.rand(())
    return x


def touches_numpy(system, x):
    np.random.normal()
    return x


def told_wrong(self, system):
    solution = GMRES(100, 1e-10).solve(system)
    return Solution(solution.vector, solution.iterations, {"left": torch.zeros(3)})


def symmetrized(self, system):
    half = dataclasses.replace(
        system,
        product=lambda x: (system.product(x) + system.transposed_product(x)) / 2,
    )
    return GMRES(100, 1e-10).solve(half)


def swapped(self, system):
    """Normal equations with both products in the wrong order, which normal matrices allow."""
    rows = torch.eye(len(system.right_hand_side), dtype=system.right_hand_side.dtype)
    columns = [system.product(system.transposed_product(row)) for row in rows]
    matrix = torch.stack(columns, 1)
    target = system.transposed_product(system.right_hand_side)
    return Solution(torch.linalg.solve(matrix, target), 0)


def local():
    solver = GMRES(100, 1e-10)
    object.__setattr__(solver, "function", lambda: None)
    return solver


def forgetful():
    """Another solver once it is copied."""
    return wrong(lambda system, x: x, __deepcopy__=lambda self, memo: GMRES(1))()


def large(system, x):
    return x if len(x) != 12 or system.key == 0 else 3 * x


WRONG = {
    "solves_a_positive_definite_system": [wrong(lambda system, x: x * (1 + 1e-4))],
    "solves_a_system_of_one_unknown": [wrong(lambda system, x: x if len(x) > 1 else -x)],
    "solves_a_system_that_is_not_symmetric": [
        wrong(None, solve=symmetrized),
        wrong(None, solve=swapped),
    ],
    "is_no_worse_than_zero": [wrong(large)],
    "a_zero_right_hand_side_has_the_solution_zero": [wrong(lambda system, x: x / x.norm())],
    "float32_stays_float32": [wrong(lambda system, x: x.double())],
    "a_start_at_the_solution_ends_at_once": [
        wrong(None, solve=without_start),
        wrong(lambda system, x: x, warm_startable=False),
    ],
    "leaves_the_system_as_it_was": [
        wrong(spoils),
        wrong(touches),
        wrong(touches_numpy),
        wrong(None, solve=told_wrong),
    ],
    "what_is_random_comes_from_the_key": [wrong(noisy, random=True), wrong(keyed)],
    "can_be_copied": [forgetful],
    "can_be_pickled": [local],
    "gives_the_implicit_hypergradient_at_an_optimum": [wrong(lambda system, x: 1.001 * x)],
}


def test_every_check_has_a_solver_that_fails_it():
    assert set(WRONG) == {check.function.__name__ for check in solver_checks()}


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, make) for name, makes in WRONG.items() for make in makes],
    ids=[f"{name}-{place}" for name, makes in WRONG.items() for place in range(len(makes))],
)
def test_a_solver_that_is_wrong_is_found(name, make):
    with pytest.raises(ConformanceError) as caught:
        check_solver(make, checks=[f"^{name}"])
    assert caught.value.check.startswith(name)
    assert caught.value.expected and caught.value.got


def test_the_accuracy_is_what_a_solver_is_held_to():
    make = wrong(lambda system, x: x * (1 + 1e-4))
    names = ["positive_definite", "implicit"]
    assert len(check_solver(make, 1e-3, names).passed) == 4
    with pytest.raises(ConformanceError, match=r"at most 1\.0e-05; got 1\.00e-04"):
        check_solver(make, 1e-5, names)


def test_a_solver_may_refuse_and_says_what_it_adds():
    @dataclasses.dataclass
    class Damped(LinearSolver):
        symmetric = True
        warm_startable = False

        @property
        def diagonal(self):
            return 0.5

        def solve(self, system):
            if len(system.right_hand_side) == 12:
                raise UnsupportedError("12 unknowns are not supported; use GMRES.")
            rows = [system.product(row) for row in torch.eye(len(system.right_hand_side)).double()]
            matrix = torch.stack(rows) + 0.5 * torch.eye(len(rows)).double()
            return Solution(torch.linalg.solve(matrix, system.right_hand_side.double()), 1)

    report = check_solver(Damped, checks=["positive", "symmetric", "than_zero", "start_at"])
    assert len(report.passed) == 4
    assert report.skipped == {
        "solves_a_system_that_is_not_symmetric": "the solver says that systems must be symmetric",
        "is_no_worse_than_zero": "unsupported: 12 unknowns are not supported; use GMRES.",
    }


def test_what_is_no_solver_is_refused():
    with pytest.raises(ConfigurationError, match="the linear solver is 'GMRES'"):
        check_solver("GMRES")


def test_systems_are_what_they_say():
    system = symmetric([1.0, 2.0, 5.0])
    assert torch.equal(system.matrix, system.matrix.T)
    found = torch.linalg.eigvalsh(system.matrix)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 5.0], dtype=F64))
    assert relative_error(system, system.solution) == 0
    assert relative_error(system, 2 * system.solution) == pytest.approx(1)
    matrix = contraction(0.5).matrix
    norm = torch.linalg.matrix_norm(torch.eye(6, dtype=F64) - matrix, 2)
    assert float(norm) == pytest.approx(0.5)
    assert float((matrix @ matrix.T - matrix.T @ matrix).norm()) > 0.1
    normal = rotation(0.5)
    modulus = torch.linalg.eigvals(torch.eye(6, dtype=F64) - normal.matrix).abs()
    torch.testing.assert_close(modulus, torch.full((6,), 0.5, dtype=F64))
    counted = Counted(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(2), key=3)
    assert counted.system.product(torch.ones(2)).tolist() == [3.0, 1.0]
    assert counted.system.transposed_product(torch.ones(2)).tolist() == [1.0, 3.0]
    assert (counted.products, counted.transposed, counted.system.key) == (1, 1, 3)
