"""Implicit hypergradients against closed forms, dense Jacobians and unrolled optimization."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import Implicit, Unrolled
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

F64 = torch.float64
KRYLOV = [
    ConjugateGradient(300, 1e-12),
    MINRES(300, 1e-12),
    GMRES(300, 1e-12),
    NormalEquationCG(300, 1e-12),
]
SERIES = [Neumann(3000, 1e-12), FixedPoint(3000, 1e-12)]


def relative_error(result, expected):
    return float((result.gradient["value"] - expected).norm() / expected.norm())


def with_inner(case, inner):
    return dataclasses.replace(case, inner=inner)


def converged(case, steps=300):
    """The state after many inner steps on the first batch."""
    state = case.state
    meta = case.problem.meta_parameters()
    for _ in range(steps):
        state, _ = case.inner.step(case.problem, state, meta, case.train_batches[0])
    return state


def ridge_at_optimum(inner):
    """Ridge regression, started at its inner optimum."""
    case = with_inner(bank.ridge(), inner)
    inputs, targets = case.train_batches[0]
    penalty = case.problem.meta.value.detach().exp()
    curvature = inputs.T @ inputs / len(inputs) + penalty.diag()
    optimum = torch.linalg.solve(curvature, inputs.T @ targets / len(inputs))
    case.problem.model.value.data.copy_(optimum)
    return case


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("solver", KRYLOV, ids=repr)
def test_quadratics(condition, solver):
    case = bank.quadratic(condition)
    result = case.call(Implicit(solver))
    # The normal equations see the square of the condition number.
    ill = isinstance(solver, NormalEquationCG) and condition > 1e3
    if not ill:
        assert relative_error(result, bank.quadratic_hypergradient(case)) < 1e-8
        assert result.cost.residual < 1e-8
    assert float(result.details["distance"]) < 1e-12


@pytest.mark.parametrize("condition", [1.0, 10.0])
@pytest.mark.parametrize("solver", SERIES, ids=repr)
def test_quadratics_by_series(condition, solver):
    case = bank.quadratic(condition)
    assert relative_error(case.call(Implicit(solver)), bank.quadratic_hypergradient(case)) < 1e-9


@pytest.mark.parametrize("solver", [*KRYLOV, *SERIES], ids=repr)
def test_logistic_regression_against_newton(solver):
    case = bank.logistic()
    result = case.call(Implicit(solver))
    assert relative_error(result, bank.logistic_hypergradient(case)) < 1e-9


@pytest.mark.parametrize("solver", [GMRES(100, 1e-13), FixedPoint(3000, 1e-13)], ids=repr)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_ridge_by_any_map(solver, momentum, nesterov):
    inner = mt.inner.SGD(lr=0.05, momentum=momentum, nesterov=nesterov and momentum > 0)
    case = ridge_at_optimum(inner)
    result = case.call(Implicit(solver))
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-9


@pytest.mark.parametrize("through", ["state", "parameters"])
def test_adam(through):
    # A large ε keeps the map regular where the second moment is zero.
    case = ridge_at_optimum(mt.inner.Adam(lr=0.05, eps=0.1))
    state = dataclasses.replace(case.state, step=10_000)
    result = case.call(Implicit(GMRES(100, 1e-13), through=through), state)
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-8


def test_conjugate_gradient_with_momentum_when_slots_are_constants():
    case = ridge_at_optimum(mt.inner.SGD(lr=0.05, momentum=0.5))
    result = case.call(Implicit(ConjugateGradient(100, 1e-13), through="parameters"))
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-9


@pytest.mark.parametrize("solver", [*KRYLOV, *SERIES, Nystrom(100, 1e-9)], ids=repr)
def test_weight_decay_and_a_learning_rate_per_group(solver):
    case = bank.inside_model()
    groups = [
        {"params": ["last.*", "temperature"], "lr": 0.2, "weight_decay": 0.3},
        {"params": ["first.bias"], "lr": 0.4},
    ]
    case = with_inner(case, mt.inner.SGD(lr=0.3, weight_decay=0.2, groups=groups))
    state = converged(case, 150)
    result = case.call(Implicit(solver), state)
    expected = flat(dense_hypergradient(case, state))
    limit = 1e-6 if isinstance(solver, Nystrom) else 1e-9
    assert float((flat(result.gradient) - expected).norm() / expected.norm()) < limit


def dense_hypergradient(case, state):
    """The hypergradient from the dense Jacobian of the step, by torch.func on whole vectors."""
    problem, meta = case.problem, case.problem.meta_leaves()
    names, shapes = list(state.parameters), [p.shape for p in state.parameters.values()]
    sizes = [shape.numel() for shape in shapes]

    def unflatten(vector):
        parts = vector.split(sizes)
        return {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}

    def step(vector, values):
        entry = dataclasses.replace(state, parameters=unflatten(vector))
        after, _ = case.inner.step(problem, entry, values, case.train_batches[0], True)
        return torch.cat([p.flatten() for p in after.parameters.values()])

    point = torch.cat([p.flatten() for p in state.parameters.values()]).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: step(v, meta), point)
    key = mt.hypergradients.trajectory.valid_key(state)
    loss = problem.evaluate_valid(unflatten(point), meta, state.buffers, case.valid_batch, key)
    outer, *direct = torch.autograd.grad(loss, [point, *meta.values()], allow_unused=True)
    u = torch.linalg.solve((torch.eye(len(point), dtype=F64) - jacobian).T, outer)
    through = torch.autograd.grad(step(point, meta), list(meta.values()), u, allow_unused=True)
    return {
        name: sum((part for part in parts if part is not None), torch.zeros_like(meta[name]))
        for name, *parts in zip(meta, direct, through, strict=True)
    }


def test_dropout_and_batch_norm_replay_one_map():
    case = bank.small_net()
    case = with_inner(case, mt.inner.SGD(lr=0.2, weight_decay=1.0))
    first = case.state
    result = case.call(Implicit(GMRES(300, 1e-13)), first)
    expected = flat(dense_hypergradient(case, first))
    assert float((flat(result.gradient) - expected).norm() / expected.norm()) < 1e-8
    # The objective iterates the very map whose Jacobian was taken.
    state = first
    for _ in range(200):
        after, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
        state = dataclasses.replace(first, parameters=after.parameters)
    check = mt.check_hypergradient(
        case.problem,
        case.inner,
        Implicit(GMRES(300, 1e-13)),
        case.train_batches[:1],
        case.valid_batch,
        state=state,
        coordinates=2,
    )
    assert check.relative_error < 1e-5


def test_tends_to_the_unrolled_one():
    case = bank.ridge()
    unrolled = Unrolled(600)
    expected = unrolled(
        case.problem, case.inner, case.state, case.train_batches * 600, case.valid_batch
    )
    result = case.call(Implicit(GMRES(50, 1e-13)), expected.state)
    assert relative_error(result, expected.gradient["value"]) < 1e-9


def test_the_map_of_a_learned_optimizer():
    # The learned weight decay moves the inner optimum, and it enters through the step alone.
    base = bank.ridge()
    penalty = base.problem.meta.value.detach().exp()
    decay = bank.Value(-2.0)

    def train_loss(model, meta, batch):
        inputs, targets = batch
        error = (inputs @ model.value - targets).square().mean()
        return error + (penalty * model.value.square()).sum()

    problem = mt.BilevelProblem(base.problem.model, decay, train_loss, base.problem.valid_loss)
    inner = mt.inner.SGD(lr=0.05, weight_decay=lambda meta, step: meta.value.exp())
    case = dataclasses.replace(base, problem=problem, inner=inner)
    result = case.call(Implicit(GMRES(50, 1e-13)), converged(case))

    inputs, targets = case.train_batches[0]
    valid_inputs, valid_targets = case.valid_batch
    factor = decay.value.detach().exp()
    hessian = 2 * (inputs.T @ inputs / len(inputs) + penalty.diag()) + factor * torch.eye(5)
    theta = torch.linalg.solve(hessian, 2 * inputs.T @ targets / len(inputs))
    outer = 2 * valid_inputs.T @ (valid_inputs @ theta - valid_targets) / len(valid_inputs)
    expected = -factor * theta.dot(torch.linalg.solve(hessian, outer))
    assert relative_error(result, expected) < 1e-9


def test_a_0d_parameter_has_its_gradient():
    case = bank.illustration(x=1 / 1.4)
    result = case.call(Implicit(ConjugateGradient(5, 1e-14)))
    assert result.gradient["value"].shape == ()
    assert float(result.gradient["value"]) == pytest.approx(
        bank.illustration_hypergradient(0.4), rel=1e-12
    )


def test_the_map_is_that_of_the_last_batch():
    # Quadratics of another curvature, mixing and shift for each batch; three steps by hand.
    cases = [bank.quadratic(10.0, 12), bank.quadratic(3.0, 12)]
    first, last = (case.train_batches[0] for case in cases)
    last = (last[0], 2 * last[1].flip(1), last[2] + 1)
    case = with_inner(cases[0], mt.inner.SGD(lr=0.05))
    meta = case.problem.meta.value.detach()
    theta = case.problem.model.value.detach() + 1
    with torch.no_grad():
        case.problem.model.value.add_(1)
    for curvature, mixing, shift in (first, first, last):
        theta = theta - 0.05 * (curvature @ theta - mixing @ meta - shift)
    outer = theta - case.valid_batch
    expected = last[1].T @ torch.linalg.solve(last[0], outer)
    for solver in (GMRES(50, 1e-13), ConjugateGradient(50, 1e-13)):
        estimator = Implicit(solver, steps=3)
        batches = [first, first, last]
        result = estimator(case.problem, case.inner, case.state, batches, case.valid_batch)
        assert relative_error(result, expected) < 1e-9
        assert float(result.valid_loss) == pytest.approx(float(outer.square().sum() / 2))
        torch.testing.assert_close(result.state.parameters["value"], theta)
        after = theta - 0.05 * (last[0] @ theta - last[1] @ meta - last[2])
        distance = float((after - theta).norm() / theta.norm())
        assert float(result.details["distance"]) == pytest.approx(distance, rel=1e-9)


def test_learning_rates_are_those_of_the_step_that_is_linearized():
    # With the rates of another step the system would not be symmetric, and twelve iterations
    # not enough for twelve variables.
    rates = torch.linspace(0.05, 0.2, 12, dtype=F64)
    inner = mt.inner.SGD(lr=lambda meta, step: rates if step == 2 else rates.flip(0))
    case = with_inner(bank.quadratic(4.0), inner)
    for solver in (ConjugateGradient(12, 1e-13), MINRES(12, 1e-13)):
        result = case.call(Implicit(solver, steps=2))
        assert relative_error(result, bank.quadratic_hypergradient(case)) < 1e-9
        assert result.cost.residual < 1e-10


@pytest.mark.parametrize("solver", [*KRYLOV, *SERIES, Nystrom(100, 1e-9)], ids=repr)
def test_an_ascent_is_a_descent_of_the_opposite(solver):
    case = ridge_at_optimum(mt.inner.SGD(lr=0.05, maximize=True))
    problem, loss = case.problem, case.problem.train_loss
    problem.train_loss = lambda model, meta, batch: -loss(model, meta, batch)
    result = case.call(Implicit(solver))
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-6


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = bank.Value([0.1, -0.2]), bank.Value([0.3, 0.4])


@pytest.mark.parametrize(
    "solver", [s for s in KRYLOV if not isinstance(s, ConjugateGradient)], ids=repr
)
def test_a_group_that_ascends_beside_one_that_descends(solver):
    # The saddle point of x²+ 2 x y − y² + λ (x + 2 y), of which x descends and y ascends.
    def train_loss(model, meta, batch):
        x, y = model.down.value, model.up.value
        return (x.square() + 2 * x * y - y.square() + meta.value * (x + 2 * y)).sum()

    problem = mt.BilevelProblem(
        Pair(),
        bank.Value([0.5, -1.0]),
        train_loss,
        lambda model, meta, batch: (model.down.value + 4 * model.up.value).sum(),
    )
    groups = [{"params": ["up.*"], "maximize": True, "lr": 0.2}]
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1, groups=groups), [None], None)
    # 2x + 2y = −λ and 2x − 2y = −2λ: x = −3λ/4 and y = λ/4.
    result = case.call(Implicit(solver))
    assert relative_error(result, torch.full((2,), 1 / 4, dtype=F64)) < 1e-12
