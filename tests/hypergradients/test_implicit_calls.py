"""Calls of Implicit: steps, warm starts, precision, cost, its objective, and what is refused."""

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
from metatoolkit.hypergradients import Implicit, implicit
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    NormalEquationCG,
    Nystrom,
)
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from tests.hypergradients.test_cost import Setup
from tests.hypergradients.test_implicit import (
    Pair,
    relative_error,
    ridge_at_optimum,
    with_inner,
)

F64 = torch.float64


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_objective(name):
    case = ridge_at_optimum(mt.inner.SGD(lr=0.05)) if name == "ridge" else bank.logistic()
    check = mt.check_hypergradient(
        case.problem,
        case.inner,
        Implicit(GMRES(300, 1e-13)),
        case.train_batches[:1],
        case.valid_batch,
        coordinates=2,
    )
    assert check.relative_error < 1e-6


def test_the_objective_is_at_the_fixed_point_of_the_last_batch():
    case = with_inner(bank.quadratic(4.0, 6), mt.inner.SGD(lr=0.2))
    first = case.train_batches[0]
    last = (first[0], 2 * first[1].flip(1), first[2] + 1)
    there = {"value": torch.tensor([0.3, -1.0, 0.5], dtype=F64)}
    optimum = torch.linalg.solve(last[0], last[1] @ there["value"] + last[2])
    expected = float((optimum - case.valid_batch).square().sum() / 2)
    found = Implicit(GMRES(20), steps=3).objective(
        case.problem, case.inner, case.state, [first, first, last], case.valid_batch, there
    )
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_steps_are_taken_first():
    case = with_inner(bank.ridge(), mt.inner.SGD(lr=0.05, momentum=0.5))
    estimator = Implicit(GMRES(50, 1e-12), steps=400)
    result = estimator(
        case.problem, case.inner, case.state, case.train_batches * 400, case.valid_batch
    )
    assert relative_error(result, bank.ridge_hypergradient(case)) < 1e-8
    assert result.state.step == 400
    assert result.cost.forward == 402


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
    low = bank.ProblemInstance(
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
    bad = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
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


def test_defaults():
    estimator = Implicit(GMRES())
    assert (estimator.steps, estimator.horizon, estimator.through) == (0, 1, "state")
    assert estimator.warm_start is False and estimator._draws is None
    assert [Implicit(GMRES(), steps=n).horizon for n in (0, 1, 2, 5)] == [1, 1, 2, 5]
    assert Implicit(Nystrom(2))._draws.fresh is True
    assert Implicit(Nystrom(2), fresh=False)._draws.fresh is False


class Drawing(GMRES):
    """Says that it draws vectors, and can use a first iterate."""

    random = True


def test_nothing_is_carried_unless_that_is_asked():
    case = bank.quadratic(10.0)
    plain, random = Implicit(GMRES(3)), Implicit(Drawing(3), warm_start=True)
    case.call(plain)
    case.call(random)
    assert plain.state_dict() == {} and random.state_dict().keys() == {"warm_start", "draws"}
    resumed = Implicit(Drawing(3), warm_start=True)
    resumed.load_state_dict(random.state_dict())
    one, other = (case.call(e).gradient["value"] for e in (random, resumed))
    assert torch.equal(one, other)


class Spy(GMRES):
    """Keeps the system that it solves."""

    def solve(self, system):
        self.system = system
        return super().solve(system)


@pytest.mark.parametrize("size", [2.0**-90, 0.3, 1.0, 3.0, 2.0**90])
def test_what_a_solver_sees(size):
    case = bank.quadratic(3.0)
    outer = case.problem.valid_loss
    case.problem.valid_loss = lambda model, meta, batch: size * outer(model, meta, batch)
    state = dataclasses.replace(case.state, step=4)
    spy = Spy(2)
    estimator = Implicit(spy, warm_start=True)
    first = case.call(estimator, state)
    system = spy.system
    assert system.start is None and system.rounding == torch.finfo(F64).eps
    # Random vectors stay the same from version to version.
    assert system.key == fold_in(state.key, 4, -3)
    right = size * (case.problem.model.value.detach() - case.valid_batch)
    factor = right / system.right_hand_side
    assert float(factor.max()) == float(factor.min()) and math.frexp(float(factor[0]))[0] == 0.5
    assert 1 <= float(system.right_hand_side.abs().max()) < 2
    # In units of the step, I − ∂Φ = lr · H.
    curvature = case.train_batches[0][0]
    x = torch.linspace(-1, 1, 12, dtype=F64)
    torch.testing.assert_close(system.product(x), curvature @ x / 3)
    torch.testing.assert_close(system.transposed_product(x), curvature @ x / 3)
    again = case.call(estimator, state)
    image = system.product(spy.system.start)
    left = float((system.right_hand_side - image).norm() / system.right_hand_side.norm())
    assert left == pytest.approx(first.cost.residual, rel=1e-6)
    assert again.cost.residual < first.cost.residual / 2


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("solver", [GMRES(4), ConjugateGradient(4), NormalEquationCG(4)])
def test_a_power_of_two_in_the_outer_loss_is_one_in_the_result(solver, warm_start):
    found = []
    for factor in (1.0, 2.0**80, 2.0**-80):
        case = bank.quadratic(5.0)
        outer = case.problem.valid_loss
        case.problem.valid_loss = lambda *args, f=factor, outer=outer: f * outer(*args)
        estimator = Implicit(solver, warm_start=warm_start)
        results = [case.call(estimator) for _ in range(2)]
        found.append([r.gradient["value"] / factor for r in results])
        found[-1] += [torch.tensor(r.cost.residual) for r in results]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_an_outer_loss_that_does_not_depend_on_the_parameters():
    case = bank.quadratic(5.0)
    case.problem.valid_loss = lambda model, meta, batch: meta.value.square().sum()
    for solver in (GMRES(4), ConjugateGradient(4)):
        result = case.call(Implicit(solver))
        assert torch.equal(result.gradient["value"], 2 * case.problem.meta.value.detach())
        assert result.cost.residual == 0.0


def halving(optimum, start):
    """θ moves half of its way to λ in each step; other parameters stay at their optimum."""

    def train_loss(model, meta, batch):
        return (model.down.value - meta.value).square().sum() / 2 + (
            model.up.value - optimum
        ).square().sum() / 2

    model = Pair()
    with torch.no_grad():
        model.up.value.fill_(optimum)
        model.down.value.fill_(start)
    problem = mt.BilevelProblem(
        model, bank.Value([0.0, 0.0]), train_loss, lambda model, meta, batch: model.down.value.sum()
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [None], None)


@pytest.mark.parametrize(
    ("largest", "there", "steps"),
    [
        # 2⁻ᵏ of what is left at first, against 1e-14 times the largest number, or 1.
        (0.5, 2.0**-10, 37),
        (0.5, 2.0**20, 47),
        (2.0**20, 1.0, 27),
    ],
)
def test_how_long_the_objective_iterates(largest, there, steps, monkeypatch):
    case = halving(largest, 0.0)
    taken = []
    real = case.inner.step
    monkeypatch.setattr(case.inner, "step", lambda *args: taken.append(1) or real(*args))
    values = {"value": torch.full((2,), there, dtype=F64)}
    arguments = (case.problem, case.inner, case.state, [None], None, values)
    found = Implicit(GMRES()).objective(*arguments)
    assert len(taken) == steps and float(found) == pytest.approx(2 * there, rel=2e-8)
    monkeypatch.setattr(implicit, "_FIXED_POINT_STEPS", steps - 1)
    with pytest.raises(UnsupportedError, match=f"^{steps - 1} inner steps on one batch reach no"):
        Implicit(GMRES()).objective(*arguments)


def test_passes_with_steps():
    case = bank.ridge()
    cost = case.call(Implicit(GMRES(2, 0.0), steps=3)).cost
    assert (cost.forward, cost.backward, cost.hvp, cost.jvp) == (5, 5, 3, 0)
