"""Implicit hypergradients against closed forms, dense Jacobians and unrolled optimization."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
)
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
from tests import bank
from tests.hypergradients.test_cost import Setup

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
    return bank.Case(case.problem, inner, case.train_batches, case.valid_batch)


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
        {"parameters": ["last.*", "temperature"], "lr": 0.2, "weight_decay": 0.3},
        {"parameters": ["first.bias"], "lr": 0.4},
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
        coordinates=4,
    )
    assert check.relative_error < 1e-5


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_objective(name):
    case = ridge_at_optimum(mt.inner.SGD(lr=0.05)) if name == "ridge" else bank.logistic()
    check = mt.check_hypergradient(
        case.problem,
        case.inner,
        Implicit(GMRES(300, 1e-13)),
        case.train_batches[:1],
        case.valid_batch,
    )
    assert check.relative_error < 1e-6


def test_steps_are_taken_first():
    case = with_inner(bank.ridge(), mt.inner.SGD(lr=0.05, momentum=0.5))
    estimator = Implicit(GMRES(50, 1e-12), steps=400)
    result = estimator(
        case.problem, case.inner, case.state, case.train_batches * 400, case.valid_batch
    )
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-8
    assert result.state.step == 400
    assert result.cost.forward == 402


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
    case = bank.Case(problem, inner, base.train_batches, base.valid_batch)
    result = case.call(Implicit(GMRES(50, 1e-13)), converged(case))

    inputs, targets = case.train_batches[0]
    valid_inputs, valid_targets = case.valid_batch
    factor = decay.value.detach().exp()
    hessian = 2 * (inputs.T @ inputs / len(inputs) + penalty.diag()) + factor * torch.eye(5)
    theta = torch.linalg.solve(hessian, 2 * inputs.T @ targets / len(inputs))
    outer = 2 * valid_inputs.T @ (valid_inputs @ theta - valid_targets) / len(valid_inputs)
    expected = -factor * theta.dot(torch.linalg.solve(hessian, outer))
    assert relative_error(result, expected) < 1e-9


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
    other = bank.Case(problem, case.inner, [identity], case.valid_batch)
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


def test_a_0d_parameter_has_its_gradient():
    case = bank.illustration(x=1 / 1.4)
    result = case.call(Implicit(ConjugateGradient(5, 1e-14)))
    assert result.gradient["value"].shape == ()
    assert float(result.gradient["value"]) == pytest.approx(
        bank.illustration_hypergradient(0.4), rel=1e-12
    )


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
    return bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None)


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
    groups = [{"parameters": ["temperature"], "lr": 0.0}]
    case = with_inner(case, mt.inner.SGD(lr=0.1, groups=groups))
    with pytest.raises(UnsupportedError, match=r"'temperature'.*requires_grad_\(False\)"):
        case.call(Implicit(MINRES()))


@pytest.mark.parametrize("solver", [ConjugateGradient(300, 1e-10), FixedPoint(900, 1e-10)])
def test_warm_start(solver):
    case = bank.quadratic(10.0)
    estimator = Implicit(solver, warm_start=True)
    first = case.call(estimator)
    again = case.call(estimator)
    assert first.cost.iterations > 5 and again.cost.iterations == 0
    torch.testing.assert_close(first.gradient["value"], again.gradient["value"])
    resumed = Implicit(solver, warm_start=True)
    resumed.load_state_dict(estimator.state_dict())
    assert case.call(resumed).cost.iterations == 0
    assert case.call(Implicit(solver)).cost.iterations == first.cost.iterations
    with pytest.raises(ConfigurationError, match="make a new Implicit"):
        with_inner(bank.ridge(), mt.inner.SGD(lr=0.1)).call(estimator)


def test_state_of_another_estimator():
    with pytest.raises(CheckpointError, match="Implicit"):
        Implicit(GMRES()).load_state_dict({"warm_start": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="noise"):
        Implicit(GMRES(), warm_start=True).load_state_dict({"noise": torch.zeros(2)})


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
@pytest.mark.parametrize("lr", [1.0, 1e-4])
def test_small_steps_in_low_precision(dtype, limit, lr):
    # I − ∂Φ = lr · H would drown in the rounding of the identity if it were not taken apart.
    case = bank.logistic()
    expected = bank.logistic_hypergradient(case)
    case.problem.model.to(dtype)
    case.problem.meta.to(dtype)
    cast = [tuple(t.to(dtype) for t in batch) for batch in case.train_batches]
    low = bank.Case(
        case.problem, mt.inner.SGD(lr=lr), cast, tuple(t.to(dtype) for t in case.valid_batch)
    )
    for solver in (ConjugateGradient(10), GMRES(10), MINRES(10)):
        result = low.call(Implicit(solver))
        assert result.gradient["value"].dtype == dtype
        error = result.gradient["value"].double() - expected
        assert float(error.norm() / expected.norm()) < limit


def test_a_non_finite_product_names_the_parameter():
    def train_loss(model, meta, batch):
        # The second derivative of |x|^(3/2) is infinite at zero.
        bad = model.scale.value.abs().pow(1.5).sum()
        return bad + model.first.weight.square().sum() * meta.value.sum()

    case = bank.inside_model()
    model = case.problem.model
    with torch.no_grad():
        model.scale.value[0] = 0.0
    problem = mt.BilevelProblem(model, bank.Value([1.0]), train_loss, case.problem.valid_loss)
    problem.valid_loss = lambda model, meta, batch: model.scale.value.sum()
    bad = bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None)
    for solver in (GMRES(), ConjugateGradient(), FixedPoint(), NormalEquationCG()):
        with pytest.raises(NonFiniteError, match=r"scale\.value"):
            bad.call(Implicit(solver))


def test_cost_in_passes():
    setup = Setup("loss", 2)
    assert Setup("loss", 8).memory(Implicit(GMRES(2, 0.0))) < 4.5
    costs = [setup.passes(Implicit(GMRES(k, 0.0))) for k in (1, 3)]
    # 3 F for the outer loss, 3 F for the step, 6 F for each of k + 1 products.
    assert costs == pytest.approx([6 + 2 * 6, 6 + 4 * 6], abs=0.1)
    case = bank.quadratic(10.0)
    cost = case.call(Implicit(GMRES(4, 0.0))).cost
    assert (cost.forward, cost.backward, cost.hvp, cost.iterations) == (2, 2, 5, 4)
    cost = case.call(Implicit(NormalEquationCG(4, 0.0))).cost
    assert (cost.hvp, cost.jvp) == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"solver": "cg"}, "solver is 'cg'"),
        ({"solver": GMRES(), "steps": -1}, "steps is -1"),
        ({"solver": GMRES(), "through": "slots"}, "through is 'slots'"),
        ({"solver": Nystrom(), "warm_start": True}, "Nystrom does not iterate"),
    ],
)
def test_arguments_out_of_range(arguments, match):
    with pytest.raises(ConfigurationError, match=match):
        Implicit(**arguments)


def test_the_map_is_that_of_the_last_batch():
    # Quadratics of another curvature, mixing and shift for each batch; two steps by hand.
    cases = [bank.quadratic(10.0, 12), bank.quadratic(3.0, 12)]
    first, last = (case.train_batches[0] for case in cases)
    last = (last[0], 2 * last[1].flip(1), last[2] + 1)
    case = with_inner(cases[0], mt.inner.SGD(lr=0.05))
    meta = case.problem.meta.value.detach()
    theta = case.problem.model.value.detach() + 1
    with torch.no_grad():
        case.problem.model.value.add_(1)
    for curvature, mixing, shift in (first, last):
        theta = theta - 0.05 * (curvature @ theta - mixing @ meta - shift)
    outer = theta - case.valid_batch
    expected = last[1].T @ torch.linalg.solve(last[0], outer)
    for solver in (GMRES(50, 1e-13), ConjugateGradient(50, 1e-13)):
        estimator = Implicit(solver, steps=2)
        result = estimator(case.problem, case.inner, case.state, [first, last], case.valid_batch)
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
    groups = [{"parameters": ["up.*"], "maximize": True, "lr": 0.2}]
    case = bank.Case(problem, mt.inner.SGD(lr=0.1, groups=groups), [None], None)
    # 2x + 2y = −λ and 2x − 2y = −2λ: x = −3λ/4 and y = λ/4.
    result = case.call(Implicit(solver))
    assert relative_error(result, torch.full((2,), 1 / 4, dtype=F64)) < 1e-12


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


def test_the_objective_is_at_the_fixed_point_of_the_last_batch():
    case = with_inner(bank.quadratic(4.0, 6), mt.inner.SGD(lr=0.2))
    first = case.train_batches[0]
    last = (first[0], 2 * first[1].flip(1), first[2] + 1)
    there = {"value": torch.tensor([0.3, -1.0, 0.5], dtype=F64)}
    optimum = torch.linalg.solve(last[0], last[1] @ there["value"] + last[2])
    expected = float((optimum - case.valid_batch).square().sum() / 2)
    found = Implicit(GMRES(20), steps=2).objective(
        case.problem, case.inner, case.state, [first, last], case.valid_batch, there
    )
    assert float(found) == pytest.approx(expected, rel=1e-10)


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
