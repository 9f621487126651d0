"""The one-step hypergradient against unrolling, closed forms and finite differences."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import OneStep, Unrolled
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.hypergradients.test_cost import Setup


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def relative_error(result, expected):
    return float((flat(result) - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_after_the_step_it_is_the_exact_one_of_that_step(name):
    case = bank.PROBLEMS[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    result, exact = case.call(OneStep(), state), case.call(Unrolled(1), state)
    assert relative_error(result, flat(exact)) < 1e-12
    assert torch.equal(result.valid_loss, exact.valid_loss)
    for one, other in zip(result.state.tensors(), exact.state.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "estimator",
    [OneStep(), OneStep(lookahead=False), OneStep(inverse="identity"), OneStep(False, "identity")],
    ids=["step", "at θ", "identity", "identity at θ"],
)
@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_is_the_derivative_of_its_objective(name, estimator):
    case = bank.PROBLEMS[name]()
    if estimator.inverse == "identity" and not isinstance(case.inner, mt.inner.SGD):
        pytest.skip("needs SGD")
    if name == "learned_rates" and estimator.inverse == "identity":
        pytest.skip("the objective divides by the learning rate, which it holds constant")
    check = mt.check_hypergradient(
        case.problem, case.inner, estimator, case.train_batches[:1], case.valid_batch
    )
    assert check.relative_error < 1e-6


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_against_the_implicit_one_of_an_isotropic_hessian(lr):
    # With H = I the inverse of I − ∂Φ is 1/lr.
    case = bank.quadratic(1.0, inner=mt.inner.SGD(lr=lr))
    exact = bank.quadratic_hypergradient(case)
    assert relative_error(case.call(OneStep(lookahead=False)), lr * exact) < 1e-12
    assert relative_error(case.call(OneStep(False, "identity")), exact) < 1e-12


def test_the_error_is_of_the_order_of_the_contraction_rate():
    # Columns of B are eigenvectors: each part of λ sees its own rate 1 − lr · h.
    case = bank.quadratic(5.0, 3)
    curvature, mixing, shift = case.train_batches[0]
    values, basis = torch.linalg.eigh(curvature)
    batch = (curvature, basis, mixing @ case.problem.meta.value.detach() + shift)
    case.problem.meta.value.data.zero_()
    case = dataclasses.replace(case, train_batches=[batch])
    exact = bank.quadratic_hypergradient(case)
    gradient = case.call(OneStep(lookahead=False)).gradient["value"]
    torch.testing.assert_close(1 - gradient / exact, 1 - values / 5.0)


def test_identity_undoes_the_learning_rate_of_each_group():
    case = bank.inside_model()
    groups = [{"params": ["last.*"], "lr": 0.05}]
    gradients = []
    for inner in (mt.inner.SGD(lr=0.3, groups=groups), mt.inner.SGD(lr=1.0)):
        other = dataclasses.replace(case, inner=inner)
        gradients.append(flat(other.call(OneStep(False, "identity"))))
    torch.testing.assert_close(*gradients)


def test_passes():
    setup = Setup("loss", 2)
    assert setup.passes(OneStep()) < 10.1
    cost = bank.ridge().call(OneStep()).cost
    assert (cost.forward, cost.backward, cost.hvp) == (2, 2, 1)


def test_unsupported():
    case = bank.ridge()
    case = dataclasses.replace(case, inner=mt.inner.Adam(lr=0.1))
    with pytest.raises(UnsupportedError, match="use SGD"):
        case.call(OneStep(inverse="identity"))
    with pytest.raises(ConfigurationError, match="inverse is 'hessian'"):
        OneStep(inverse="hessian")


def test_defaults():
    estimator = OneStep()
    assert (estimator.lookahead, estimator.inverse, estimator.horizon) == (True, "step", 1)


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("inverse", ["step", "identity"])
def test_by_hand(lookahead, inverse):
    # θ⁺ = θ − r b λ with the rate r = 0.25, and L_V = ½ (θ − t)² + λ.
    problem = mt.BilevelProblem(
        bank.Value(2.0),
        bank.Value(0.5),
        lambda model, meta, batch: batch * model.value * meta.value,
        lambda model, meta, batch: (model.value - batch).square() / 2 + meta.value,
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.25), [3.0], -1.0)
    result = case.call(OneStep(lookahead, inverse))
    after = 2.0 - 0.25 * 3.0 * 0.5
    point = after if lookahead else 2.0
    factor = 0.25 if inverse == "step" else 1.0
    expected = 1.0 - factor * 3.0 * (point + 1.0)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-14)
    assert float(result.valid_loss) == pytest.approx((point + 1.0) ** 2 / 2 + 0.5, rel=1e-14)
    assert float(result.state.parameters["value"]) == pytest.approx(after, rel=1e-15)
    there = {"value": torch.tensor(0.9, dtype=torch.float64)}
    found = OneStep(lookahead, inverse).objective(
        problem, case.inner, case.state, [3.0], -1.0, there
    )
    moved = point - factor * 3.0 * 0.4
    assert float(found) == pytest.approx((moved + 1.0) ** 2 / 2 + 0.9, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "steps"), [((), 1), ((False,), 2), ((True, "identity"), 2)], ids=str
)
def test_how_many_steps_the_objective_takes(arguments, steps):
    case = recorded()
    there = {"value": torch.tensor(0.9, dtype=torch.float64)}
    state = case.state
    case.seen.clear()
    OneStep(*arguments).objective(case.problem, case.inner, state, [1.0], 0.25, there)
    assert len(case.draws("train")) == steps and len(set(case.draws("train"))) == 1
    assert len(case.draws("valid")) == 1
