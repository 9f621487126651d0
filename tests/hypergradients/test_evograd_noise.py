"""The noise of EvoGrad's candidates: its distribution, and the mean of the estimate over it."""

import itertools
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.testing import bank
from tests.hypergradients.test_evograd import fixed_noise

F64 = torch.float64


def gauss_hermite(candidates):
    """Nodes and weights of a rule that is exact for the second moments of K normal numbers."""
    if candidates == 2:
        nodes = [(-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6)]
        for (a, p), (b, q) in itertools.product(nodes, nodes):
            yield (a, b), p * q
        return
    radius = math.sqrt(candidates)
    for axis, sign in itertools.product(range(candidates), (-1, 1)):
        yield tuple(sign * radius * (i == axis) for i in range(candidates)), 1 / (2 * candidates)


def signs(candidates):
    """All outcomes of sign noise, those with equally many minus signs only once."""
    for minus in range(candidates + 1):
        values = (-1.0,) * minus + (1.0,) * (candidates - minus)
        yield values, math.comb(candidates, minus) / 2**candidates


@pytest.mark.parametrize("outcomes", [signs, gauss_hermite])
@pytest.mark.parametrize("number", [2, 10])
@pytest.mark.parametrize(("sigma", "temperature"), [(1e-2, 0.5), (1e-3, 0.05)])
def test_mean_at_small_sigma_is_the_one_step_hypergradient(outcomes, number, sigma, temperature):
    # With η = 1 the one-step hypergradient is −(2x)(2(x − ½)) = 0.24 at x = 0.3.
    mean = 0.0
    for values, probability in outcomes(number):
        estimator = EvoGrad(number, sigma, temperature, noise=fixed_noise(values), rescale=1.0)
        mean += probability * float(bank.illustration().call(estimator).gradient["value"])
    assert mean == pytest.approx(0.24, abs=1e-3)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@pytest.mark.parametrize("candidates", [2, 10])
def test_mean_over_its_own_noise(noise, candidates):
    case = bank.illustration()
    state = case.state
    draws = torch.stack(
        [
            case.call(
                EvoGrad(candidates, 1e-2, 0.5, noise=noise, rescale=0.5, seed=seed), state
            ).gradient["value"]
            for seed in range(200)
        ]
    )
    error = abs(float(draws.mean()) - 0.5 * 0.24)
    assert error < 3.5 * float(draws.std()) / math.sqrt(len(draws))
    assert float(draws.std()) < 0.3


def test_half_of_the_sign_draws_of_two_candidates_are_exactly_zero():
    case = bank.illustration()
    state = case.state
    draws = [
        float(case.call(EvoGrad(2, 1.0, 0.5, seed=seed), state).gradient["value"])
        for seed in range(400)
    ]
    zeros = sum(draw == 0 for draw in draws)
    assert 160 <= zeros <= 240
    # The others are the one value at ε = (1, −1), whichever candidate comes first.
    assert all(draw == 0 or draw == pytest.approx(-0.0710190567, rel=1e-8) for draw in draws)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_noise_is_standard_and_independent(noise):
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
    problem = mt.BilevelProblem(model, bank.Value(0.0), lambda *_: None, lambda *_: None)
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    later = inner.init(problem, seed=1)
    draws = []
    for estimator in (EvoGrad(noise=noise), EvoGrad(noise=noise, seed=1)):
        for where in (state, later):
            for candidate in range(2):
                drawn = estimator._candidates(where)
                parts = [e.flatten() for _, e in drawn.perturbations(candidate)]
                draws.append(torch.cat(parts).double())
    matrix = torch.stack(draws)
    size = matrix.shape[1]
    second = matrix @ matrix.T / size
    assert float(matrix.mean(1).abs().max()) < 5 / math.sqrt(size)
    torch.testing.assert_close(
        second, torch.eye(len(draws), dtype=F64), atol=8 / math.sqrt(size), rtol=0
    )
    assert bool((matrix.abs() == 1).all()) == (noise == "sign")


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_directions_are_drawn_anew_at_every_step(noise):
    case = bank.quadratic(size=12)
    state, rows = case.state, []
    for _ in range(6):
        gradient = case.call(EvoGrad(4, 0.1, 0.5, noise=noise), state).gradient["value"]
        rows.append(gradient / gradient.norm())
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
    assert float(torch.linalg.svdvals(torch.stack(rows))[1]) > 0.1
