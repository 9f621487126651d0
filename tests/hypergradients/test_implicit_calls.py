"""Calls of Implicit: steps, warm starts, precision, cost, its objective, and what is refused."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
)
from metatoolkit.hypergradients import Implicit
from metatoolkit.hypergradients.linear_solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    FixedPoint,
    NormalEquationCG,
    Nystrom,
)
from tests import bank
from tests.hypergradients.test_cost import Setup
from tests.hypergradients.test_implicit import (
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
    )
    assert check.relative_error < 1e-6


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
