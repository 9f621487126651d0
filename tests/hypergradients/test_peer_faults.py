"""What other libraries were found to get wrong without a word, as cases over all that could."""

import functools

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import (
    GMRES,
    MINRES,
    SAMA,
    ConjugateGradient,
    EvoGrad,
    EvolutionStrategies,
    FiniteDifference,
    FixedPoint,
    ForwardMode,
    GuidedEvoGrad,
    Implicit,
    Neumann,
    NormalEquationCG,
    Nystrom,
    OneStep,
    Unrolled,
)
from metatoolkit.testing import bank

SOLVERS = {
    "conjugate gradient": lambda: ConjugateGradient(60, 1e-12),
    "normal equations": lambda: NormalEquationCG(200, 1e-12),
    "MINRES": lambda: MINRES(60, 1e-12),
    "GMRES": lambda: GMRES(60, 1e-12),
    "Neumann": lambda: Neumann(400, 1e-12),
    "fixed point": lambda: FixedPoint(4000, 1e-12),
    "Nystrom": lambda: Nystrom(12, 1e-10),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


@solvers
@pytest.mark.parametrize("rate", [0.1, 0.03])
def test_no_solver_depends_on_the_learning_rate(solver, rate):
    # A conjugate gradient whose residual omits a scale is off by more at each iteration.
    case, state = at_optimum(rate)
    result = case.call(Implicit(solver()), state)
    expected = bank.quadratic_hypergradient(case)
    error = (result.gradient["value"] - expected).norm() / expected.norm()
    # Nyström's inverse of an ill-conditioned sketch loses digits to rounding.
    bound = 1e-4 if isinstance(solver(), Nystrom) else 1e-6
    assert float(error) < bound
    assert result.cost.residual < bound


@functools.cache
def at_optimum(rate):
    """A problem, and a state in which plain gradient descent has come to rest on it."""
    case = bank.quadratic(4.8, inner=mt.inner.SGD(lr=rate))
    state = case.state
    for _ in range(3000):
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
    return case, state


@solvers
def test_a_scalar_parameter_has_its_implicit_hypergradient(solver):
    # Another library returns exactly zero for a 0-d tensor.
    penalty = 0.4
    if isinstance(solver(), Nystrom):
        solver = lambda: Nystrom(1, 1e-12)  # noqa: E731
    case = bank.illustration(x=1 / (1 + penalty), penalty=penalty)
    result = case.call(Implicit(solver()))
    expected = bank.illustration_hypergradient(penalty)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sigma", [1.0, 0.1])
def test_zero_order_estimates_have_the_right_size(sigma):
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([2.5, -0.5]),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: meta.value.square().sum(),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    draws = torch.stack(
        [
            case.call(EvolutionStrategies(1, 8, sigma, seed=seed)).gradient["value"]
            for seed in range(150)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    expected = torch.tensor([5.0, -1.0], dtype=torch.float64)
    assert bool(((draws.mean(0) - expected).abs() < 4 * error).all())


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (FiniteDifference, lambda: Unrolled(1)),
        # These take the outer gradient before the step.
        (SAMA, lambda: OneStep(lookahead=False)),
        (lambda: GuidedEvoGrad(1e-4, rescale=0.1), lambda: OneStep(lookahead=False)),
    ],
)
def test_dropout_is_common_to_passes_that_are_subtracted(make, exact, probability):
    case = bank.small_net()
    case.problem.model[3].p = probability
    case.inner = mt.inner.SGD(lr=0.1)
    one, other = (
        torch.cat([g.flatten() for g in case.call(estimator).gradient.values()])
        for estimator in (exact(), make())
    )
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99


@pytest.mark.parametrize("make", [lambda: Unrolled(5), lambda: ForwardMode(5)])
def test_a_dead_coordinate_under_adam_leaves_the_hypergradient_finite(make):
    result = bank.dead_coordinates().call(make())
    assert all(bool(g.isfinite().all()) for g in result.gradient.values())
    assert any(bool(g.any()) for g in result.gradient.values())


@pytest.mark.parametrize("make", [lambda: Unrolled(3), lambda: EvoGrad(2, 0.1, 0.5, fresh=False)])
def test_a_hundred_calls_on_one_model_are_the_same_call(make):
    # Others patch a model and fail, or drift, the second time.
    case, estimator = bank.small_net(), make()
    state = case.state
    first = case.call(estimator, state).gradient
    for _ in range(100):
        last = case.call(estimator, state).gradient
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert int(case.problem.model[1].num_batches_tracked) == 0


def test_groups_and_learned_rates_survive():
    case = bank.learned_rates()
    result = mt.check_hypergradient(
        case.problem, case.inner, Unrolled(3), case.batches(3), case.valid_batch
    )
    assert result.relative_error < 1e-6
