"""ES, PES and NRES: unbiased where they claim to be, biased where theory says so."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.hypergradients import (
    EvolutionStrategies,
    NoiseReuseES,
    PersistentES,
    Unrolled,
)
from metatoolkit.hypergradients.noise import standard_noise
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank

ALL = [EvolutionStrategies, PersistentES, NoiseReuseES]


def drift(start=0.0, rate=-0.25):
    """θ after t steps is θ₀ − lr λ t, and the outer loss (θ − 1)² / 2."""
    problem = mt.BilevelProblem(
        bank.Value(start),
        bank.Value(rate),
        lambda model, meta, batch: meta.value * model.value,
        lambda model, meta, batch: (model.value - 1).square() / 2,
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [None], None)


def drift_hypergradient(steps, through, rate=-0.25):
    """The derivative through the last ``through`` of ``steps`` steps."""
    return (-0.5 * rate * steps - 1) * -0.5 * through


def within(draws, expected, errors=4.0):
    draws = torch.as_tensor(draws, dtype=torch.float64)
    error = float(draws.std()) / math.sqrt(len(draws))
    return abs(float(draws.mean()) - expected) < errors * error


def windows(make, calls, seeds):
    """The estimate of each window for each seed, (seeds, calls)."""
    case = drift()
    problem, rows = case.problem, []
    for seed in range(seeds):
        estimator, state, row = make(seed), case.state, []
        for _ in range(calls):
            result = estimator(problem, case.inner, state, [None] * estimator.horizon, None)
            row.append(float(result.gradient["value"]))
            for _ in range(estimator.horizon):
                state, _ = case.inner.step(problem, state, problem.meta_parameters(), None)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("estimator", [PersistentES, NoiseReuseES])
def test_persistent_ones_see_all_windows_and_the_truncated_one_does_not(estimator):
    draws = windows(lambda seed: estimator(2, 4, 0.1, seed=seed), 3, 50)
    for window in range(3):
        steps = 2 * (window + 1)
        assert within(draws[:, window], drift_hypergradient(steps, steps))
    truncated = windows(lambda seed: EvolutionStrategies(2, 4, 0.1, seed=seed), 3, 50)
    for window in range(3):
        steps = 2 * (window + 1)
        assert within(truncated[:, window], drift_hypergradient(steps, 2))
    assert not within(truncated[:, 2], drift_hypergradient(6, 6))


def chaos():
    """θ ← 4 s(λ) θ (1 − θ), the logistic map, as one step of gradient descent."""

    def train_loss(model, meta, batch):
        x, growth = model.value, 4 * meta.value.sigmoid()
        return x.square() / 2 - growth * (x.square() / 2 - x**3 / 3)

    problem = mt.BilevelProblem(
        bank.Value(0.3),
        bank.Value(3.5),
        train_loss,
        lambda model, meta, batch: (model.value - 0.5).square(),
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=1.0), [None], None)


def logistic_loss(rates, steps):
    """The outer loss of :func:`chaos` for many values of λ at once, written out anew."""
    x = torch.full_like(rates, 0.3)
    for _ in range(steps):
        x = 4 * torch.sigmoid(rates) * x * (1 - x)
    return (x - 0.5).square()


@pytest.mark.parametrize("estimator", [EvolutionStrategies, NoiseReuseES])
def test_a_chaotic_loss_is_smoothed(estimator):
    steps, sigma = 25, 0.5
    grid = torch.linspace(-7, 7, 400_001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
    values = logistic_loss(3.5 + sigma * grid, steps)
    expected = float(torch.trapezoid(values * grid * density, grid)) / sigma
    exact = float(chaos().call(Unrolled(steps)).gradient["value"])
    assert abs(exact) > 1e3 * abs(expected)
    draws = [
        float(chaos().call(estimator(steps, 1, sigma, seed=s)).gradient["value"]) for s in range(80)
    ]
    assert within(draws, expected)


def test_the_mean_is_the_derivative_of_the_smoothed_loss():
    # A Gaussian does not change the slope of a quadratic; the sine's it damps.
    sigma, rate = 0.7, 0.3
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([rate, rate]),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: meta.value[0] ** 2 + meta.value[1].sin(),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    draws = torch.stack(
        [
            case.call(EvolutionStrategies(1, 2, sigma, seed=seed)).gradient["value"]
            for seed in range(400)
        ]
    )
    assert within(draws[:, 0], 2 * rate)
    assert within(draws[:, 1], math.cos(rate) * math.exp(-(sigma**2) / 2))


@pytest.mark.parametrize("noise", ["gaussian", "sign"])
def test_small_perturbations_give_the_exact_derivative_along_the_noise(noise):
    case = bank.ridge()
    exact = case.call(Unrolled(3)).gradient["value"]
    estimator = EvolutionStrategies(3, 1, 1e-5, noise)
    gradient = case.call(estimator).gradient["value"]
    direction = estimator._draw(case.problem.meta_parameters(), case.state, 0)["value"]
    torch.testing.assert_close(gradient, (exact @ direction) * direction, rtol=1e-6, atol=1e-9)
    assert bool((direction.abs() == 1).all()) == (noise == "sign")


def test_nothing_needs_a_derivative_in_meta():
    case = bank.ridge()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: model.value.square().sum(),
        lambda model, meta, batch: torch.tensor(
            (meta.value.detach().numpy() ** 2).sum(), dtype=torch.float64
        ),
    )
    case = dataclasses.replace(case, problem=problem)
    draws = [
        case.call(EvolutionStrategies(1, 4, 0.1, seed=s)).gradient["value"] for s in range(100)
    ]
    expected = 2 * case.problem.meta.value.detach()
    for column, value in zip(torch.stack(draws).T, expected, strict=True):
        assert within(column, float(value))


def test_cost_is_that_of_plain_passes():
    case = bank.small_net()
    result = case.call(EvolutionStrategies(3, 2, 0.1))
    assert (result.cost.forward, result.cost.backward) == (16, 12)
    state, meta = case.state, case.problem.meta_parameters()
    step = count_flops(lambda: case.inner.step(case.problem, state, meta, case.train_batches[0]))

    def outer():
        with torch.no_grad():
            case.problem.evaluate_valid(state.parameters, {}, state.buffers, case.valid_batch, 0)

    expected = 4 * (3 * step + count_flops(outer))
    assert count_flops(lambda: case.call(EvolutionStrategies(3, 2, 0.1))) == expected


@pytest.mark.parametrize("estimator", [PersistentES, NoiseReuseES])
def test_episodes_begin_anew_and_resume_bitwise(tmp_path, estimator):
    def train(path, steps, resume):
        case, logged = bank.small_net(), []
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            estimator(2, 2, 0.1),
            torch.optim.Adam(case.problem.meta.parameters(), lr=0.01),
            reset_every=6,
        )
        trainer.fit(
            case.train_batches,
            [case.valid_batch],
            steps,
            log=lambda *entry: logged.append(entry),
            checkpoint=path,
            resume=resume,
            progress=False,
        )
        return trainer, logged

    whole, expected = train(tmp_path / "a.pt", 8, False)
    assert whole.state.step == 4 and whole.resets_done == 2
    train(tmp_path / "b.pt", 5, False)
    resumed, logged = train(tmp_path / "b.pt", 8, True)
    assert logged == expected
    for one, two in zip(whole.state.tensors(), resumed.state.tensors(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(
        whole.problem.meta.parameters(), resumed.problem.meta.parameters(), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("estimator", [PersistentES, NoiseReuseES])
def test_another_random_key_begins_anew_at_any_step(estimator):
    case = bank.small_net()
    carried = estimator(1, 2, 0.1)
    case.call(carried)
    state, _ = case.inner.step(
        case.problem,
        case.inner.init(case.problem, seed=6),
        case.problem.meta_parameters(),
        case.train_batches[0],
    )
    assert state.step == 1 and state.key != case.state.key
    one, other = case.call(carried, state), case.call(estimator(1, 2, 0.1), state)
    assert torch.equal(one.details["losses"], other.details["losses"])


def test_a_call_by_hand():
    case, sigma = drift(start=0.5, rate=-0.25), 0.2
    state = case.inner.init(case.problem, seed=8)
    result = case.call(EvolutionStrategies(3, 2, sigma), state)
    gradient, losses = 0.0, []
    for pair in range(2):
        # The draws of published runs stay what they were.
        key = fold_in(state.key, state.step, -7, 0, pair)
        noise = float(
            standard_noise({"value": torch.zeros((), dtype=torch.float64)}, "gaussian", key)[
                "value"
            ]
        )
        sides = []
        for sign in (1, -1):
            theta = 0.5 - 3 * 0.5 * (-0.25 + sign * sigma * noise)
            sides.append((theta - 1) ** 2 / 2)
        losses.append(sides)
        gradient += (sides[0] - sides[1]) / (2 * sigma) * noise / 2
    assert float(result.gradient["value"]) == pytest.approx(gradient, rel=1e-12)
    assert result.details["losses"].tolist() == [pytest.approx(pair, rel=1e-12) for pair in losses]
    assert float(result.valid_loss) == pytest.approx(sum(map(sum, losses)) / 4, rel=1e-12)
    assert (result.cost.forward, result.cost.backward) == (16, 12)
    assert result.state.step == state.step and result.state.key == state.key
    assert float(result.state.parameters["value"]) == 0.5
    assert not result.gradient["value"].requires_grad


def test_slopes_in_another_precision_than_that_of_lambda():
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([0.3, -0.2]).to(torch.bfloat16),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: meta.value.double().sum(),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    result = case.call(EvolutionStrategies(1, 3, 0.5))
    assert result.gradient["value"].dtype == torch.bfloat16
    assert result.details["losses"].dtype == torch.float64
