"""Implicit hypergradients by each solver: its rate, its residual, and what it cannot solve."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import NonFiniteError, UnsupportedError
from metatoolkit.hypergradients import Implicit
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    Neumann,
    NormalEquationCG,
    Nystrom,
)
from metatoolkit.testing import bank
from tests.hypergradients.test_implicit import (
    relative_error,
    ridge_at_optimum,
    with_inner,
)

F64 = torch.float64


@pytest.mark.parametrize("iterations", [1, 3, 6])
@pytest.mark.parametrize(
    "build", [ConjugateGradient, MINRES, GMRES, NormalEquationCG, Neumann, FixedPoint, Nystrom]
)
def test_the_residual_is_true(build, iterations):
    case = bank.quadratic(10.0)
    solver = build(iterations)
    result = case.call(Implicit(solver))
    curvature, mixing, _ = case.train_batches[0]
    outer = case.problem.model.value.detach() - case.valid_batch
    # With g = ∂L_V, gradient = Bᵀw: w is read off a problem with B = I.
    identity = (curvature, torch.eye(12, dtype=F64), mixing @ case.problem.meta.value.detach())
    meta = bank.Value(case.train_batches[0][2].tolist())
    problem = mt.BilevelProblem(
        case.problem.model, meta, case.problem.train_loss, case.problem.valid_loss
    )
    other = dataclasses.replace(case, problem=problem, train_batches=[identity])
    w = other.call(Implicit(solver)).gradient["value"]
    torch.testing.assert_close(result.gradient["value"], mixing.T @ w, rtol=1e-9, atol=1e-9)
    expected = float((outer - curvature @ w).norm() / outer.norm())
    assert result.cost.residual == pytest.approx(expected, rel=1e-8)
    assert result.cost.iterations == iterations


@pytest.mark.parametrize("lr", [1e-3, 0.02, 1.0])
def test_conjugate_gradient_is_right_at_every_learning_rate(lr):
    # An update of the residual that forgets such a scale is off by a factor that grows with K.
    case = with_inner(bank.quadratic(4.8), mt.inner.SGD(lr=lr))
    expected = bank.quadratic_hypergradient(case)
    errors = [
        relative_error(case.call(Implicit(ConjugateGradient(k, 0.0))), expected)
        for k in (5, 10, 20)
    ]
    assert errors[0] < 0.05 and errors[2] < 1e-10
    assert errors[0] > errors[1] > errors[2]


def test_conjugate_gradient_converges_at_its_rate():
    case = bank.quadratic(100.0, 40)
    expected = bank.quadratic_hypergradient(case)
    rate = (10 - 1) / (10 + 1)
    for iterations in (5, 15, 30):
        result = case.call(Implicit(ConjugateGradient(iterations, 0.0)))
        # ‖Bᵀe‖ ≤ ‖B‖ ‖e‖, and the norm of H is at most κ times and at least once that of I.
        norm = torch.linalg.matrix_norm(case.train_batches[0][1], 2)
        outer = case.problem.model.value.detach() - case.valid_batch
        bound = 2 * rate**iterations * float(norm * outer.norm())
        assert float((result.gradient["value"] - expected).norm()) <= bound


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fixed_point_converges_at_the_rate_of_the_map(momentum):
    # Heavy ball with complex eigenvalues contracts by the root of its momentum, whatever H is.
    condition = 4.0
    inner = mt.inner.SGD(lr=1 / condition, momentum=momentum)
    case = with_inner(bank.quadratic(condition), inner)
    rate = math.sqrt(momentum) if momentum else 1 - 1 / condition
    expected = bank.quadratic_hypergradient(case)
    errors = [
        relative_error(case.call(Implicit(FixedPoint(k, 0.0))), expected) for k in range(20, 61)
    ]
    slope = (math.log(max(errors[-5:])) - math.log(max(errors[:5]))) / 36
    assert math.exp(slope) == pytest.approx(rate, rel=0.03)


def test_a_neumann_series_that_diverges_is_an_error():
    # Largest eigenvalue 2.67 in units of the step.
    case = with_inner(bank.quadratic(2.67), mt.inner.SGD(lr=1.0))
    with pytest.raises(UnsupportedError, match="does not converge at step_size=1"):
        case.call(Implicit(Neumann(20, step_size=1.0)))
    with pytest.raises(UnsupportedError, match="no contraction"):
        case.call(Implicit(FixedPoint(20)))
    result = case.call(Implicit(Neumann(200, 1e-12)))
    assert relative_error(result, bank.quadratic_hypergradient(case)) < 1e-10


def saddle():
    """A training loss of curvature 2 and −1."""

    def train_loss(model, meta, batch):
        first, second = model.value
        return first**2 - second**2 / 2 + (meta.value * model.value).sum()

    problem = mt.BilevelProblem(
        bank.Value([-0.15, 0.4]),
        bank.Value([0.3, 0.4]),
        train_loss,
        lambda model, meta, batch: (model.value * torch.tensor([1.0, 3.0])).sum(),
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)


def test_an_indefinite_hessian():
    # H⁻¹(1, 3) = (½, −3), with a minus sign from ∂g/∂λ = I.
    expected = torch.tensor([-0.5, 3.0], dtype=F64)
    case = saddle()
    with pytest.raises(UnsupportedError, match=r"curvature.*MINRES"):
        case.call(Implicit(ConjugateGradient()))
    for solver in (MINRES(5, 1e-12), GMRES(5, 1e-12), NormalEquationCG(5, 1e-12)):
        assert relative_error(case.call(Implicit(solver)), expected) < 1e-12
    stopped = case.call(Implicit(ConjugateGradient(negative_curvature="stop")))
    assert float(stopped.details["negative_curvature"]) < 0
    assert stopped.cost.residual > 0.1


@pytest.mark.parametrize("solver", [ConjugateGradient(), MINRES(), Nystrom()], ids=repr)
@pytest.mark.parametrize(
    "inner", [mt.inner.SGD(lr=0.1, momentum=0.9), mt.inner.Adam(lr=0.1)], ids=repr
)
def test_symmetric_solvers_need_a_gradient_step(solver, inner):
    case = with_inner(bank.ridge(), inner)
    with pytest.raises(UnsupportedError, match="FixedPoint, NormalEquationCG or GMRES"):
        case.call(Implicit(solver))


def test_a_learning_rate_of_zero_is_an_error():
    case = bank.inside_model()
    groups = [{"params": ["temperature"], "lr": 0.0}]
    case = with_inner(case, mt.inner.SGD(lr=0.1, groups=groups))
    with pytest.raises(UnsupportedError, match=r"'temperature'.*requires_grad_\(False\)"):
        case.call(Implicit(MINRES()))


class Clipped(mt.inner.SGD):
    """Moves by a gradient within ±0.1."""

    def update(self, parameter, gradient, *rest):
        return super().update(parameter, gradient.clamp(-0.1, 0.1), *rest)


def test_a_subclass_of_gradient_descent_is_taken_for_no_plain_one():
    case = with_inner(bank.ridge(), Clipped(lr=0.05))
    with pytest.raises(UnsupportedError, match="Clipped"):
        case.call(Implicit(ConjugateGradient()))
    with pytest.raises(UnsupportedError, match="Clipped"):
        case.call(mt.hypergradients.OneStep(inverse="identity"))
    # Others differentiate the step as it is: inside the bounds it is plain gradient descent.
    case = ridge_at_optimum(Clipped(lr=0.05))
    result = case.call(Implicit(GMRES(50, 1e-12)))
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-9


@pytest.mark.parametrize("solver", [Nystrom(3, 0.1), Neumann(3, power_iterations=2)], ids=repr)
def test_random_solvers_draw_anew_in_every_run_and_at_every_step(solver):
    case = bank.quadratic(2.5)
    states = [case.state, case.inner.init(case.problem, seed=6)]
    states.append(dataclasses.replace(case.state, step=1))
    found = [case.call(Implicit(solver), state).gradient["value"] for state in states]
    again = case.call(Implicit(solver), case.state).gradient["value"]
    assert torch.equal(again, found[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(found[one], found[other], rtol=1e-6)


@pytest.mark.parametrize(
    "build", [ConjugateGradient, MINRES, GMRES, NormalEquationCG, Neumann, FixedPoint, Nystrom]
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_product_that_is_not_finite_is_told_with_its_variable(build, tasks):
    # The gradient of |θ|^1.5 is 0 at 0, where there is no second derivative.
    def train_loss(model, meta, batch):
        fitted = (model.value - meta.value * batch).square().sum()
        return fitted + model.other.abs().pow(1.5).sum()

    def valid_loss(model, meta, batch):
        return (model.value * batch).sum() + model.other.sum()

    model = bank.Value([1.0, 2.0])
    model.other = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    problem = mt.BilevelProblem(model, bank.Value([0.3, 0.1]), train_loss, valid_loss)
    batch, inner = torch.ones(tasks, 2, dtype=F64), mt.inner.SGD(0.1)
    batching = "loop" if tasks == 1 or build.random else "vmap"
    with pytest.raises(NonFiniteError, match=r"a product with the Jacobian .* at 'other'"):
        mt.over_tasks(problem, inner, Implicit(build()), (batch, batch), batching)
