"""The one-dimensional illustration against closed forms, the toolkit and the paper's notebook."""

import itertools
import math

import numpy as np
import pytest
import torch

import metatoolkit as mt
from applications.illustration import estimators, replay
from applications.illustration.experiment import experiment
from applications.illustration.problem import (
    build_problem,
    inner_optimum,
    limit_estimate,
    mean_limit_estimate,
    true_hypergradient,
)
from applications.illustration.settings import PARTS
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.hypergradients import GMRES, EvoGrad, Implicit

F64 = torch.float64


def call(estimator, x, penalty):
    problem = build_problem(x, penalty)
    inner = mt.inner.SGD(lr=0.1)
    batches = [None] * estimator.horizon
    return float(estimator(problem, inner, inner.init(problem), batches, None).gradient["value"])


@pytest.mark.parametrize(("penalty", "expected"), [(0.1, -0.676183), (1.0, 0.0), (2.0, 0.037037)])
def test_true_hypergradient(penalty, expected):
    assert true_hypergradient(penalty) == pytest.approx(expected, abs=5e-7)
    implicit = call(Implicit(GMRES(1)), inner_optimum(penalty), penalty)
    assert implicit == pytest.approx(true_hypergradient(penalty), abs=1e-12)
    step = 1e-6
    above, below = ((inner_optimum(penalty + s) - 0.5) ** 2 for s in (step, -step))
    assert true_hypergradient(penalty) == pytest.approx((above - below) / (2 * step), abs=1e-8)


@pytest.mark.parametrize(
    ("noise", "temperature", "expected"),
    [
        ((1.0, -1.0), 0.5, -0.0710190567),
        ((0.5, -1.0, 2.0), 0.5, -0.0083573891),
        ((0.5, -1.0, 2.0), 1e6, -1.4399966e-6),
        ((1.0, 1.0), 0.5, 0.0),
    ],
)
def test_hand_computed_estimates(noise, temperature, expected):
    at = torch.tensor(0.3, dtype=F64)
    given = replay.estimates(at, 0.4, torch.tensor(noise, dtype=F64), 1.0, temperature)
    assert float(given) == pytest.approx(expected, abs=0, rel=2e-9)


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize(("count", "sigma", "temperature"), [(2, 1.0, 0.5), (7, 0.1, 0.03)])
def test_replay_is_the_estimator_of_the_toolkit(kind, count, sigma, temperature):
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randn(6, count, generator=generator, dtype=F64)
    noise = drawn if kind == "gaussian" else drawn.sign()
    x = torch.linspace(-2, 2, 6, dtype=F64)
    penalty = torch.linspace(0.1, 2, 6, dtype=F64)
    given = replay.estimates(x, penalty, noise, sigma, temperature)
    for index in range(6):
        row = noise[index]
        estimator = EvoGrad(
            count, sigma, temperature, noise=lambda k, name, parameter, row=row: row[k]
        )
        expected = call(estimator, float(x[index]), float(penalty[index]))
        assert float(given[index]) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_notebook_noise_is_a_run_of_single_draws():
    stream = replay.NotebookNoise(1)
    given = torch.cat([stream.draw(3, 7).flatten(), stream.draw(0), stream.draw(9)])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = torch.cat([torch.randn(1) for _ in range(30)])
    assert torch.equal(given, expected)


def test_the_notebook_is_replayed():
    """Mean absolute bias, mean deviation and four points of the curves, for each K."""
    expected = {
        2: (0.08514180, 0.291193, -0.191445, 0.694848, 0.022042, 0.004454),
        10: (0.04723953, 0.124393, -0.387488, 0.417304, 0.016869, 0.040099),
        100: (0.04860722, 0.071800, -0.361601, 0.257026, 0.004645, 0.032520),
    }
    penalties = torch.linspace(0.1, 2, 100, dtype=F64)
    truth = true_hypergradient(penalties)
    noise = replay.NotebookNoise(1)
    for count, values in expected.items():
        drawn = replay.sample_estimates(penalties, 100, count, 1.0, 0.5, noise)
        mean, std = drawn.mean(1), drawn.std(1, correction=0)
        given = ((mean - truth).abs().mean(), std.mean(), mean[0], std[0], mean[47], mean[-1])
        assert [float(value) for value in given] == pytest.approx(values, abs=1e-5)
        correlation = np.corrcoef(mean.numpy(), truth.numpy())[0, 1]
        assert correlation == pytest.approx(
            {2: 0.751036, 10: 0.982405, 100: 0.992167}[count], abs=1e-5
        )


ENDS = {
    2: [(0.1672, 0.2142), (0.3799, 1.2005), (0.5947, 0.8057), (0.9137, 0.3334), (0.3950, 1.6591)],
    10: [(0.1668, 0.2855), (0.3807, 1.1875), (0.5918, 0.8171), (0.8982, 0.3550), (0.3974, 1.6780)],
    100: [(0.1674, 0.2600), (0.3811, 1.1832), (0.5886, 0.8170), (0.8872, 0.3822), (0.3951, 1.6857)],
}
TRUE_ENDS = [
    (0.1832, 0.3751), (0.3805, 1.1907), (0.5896, 0.8164), (0.8897, 0.3751), (0.3956, 1.6823)
]  # fmt: skip


def test_trajectories_end_where_the_notebooks_do():
    run = experiment.run(
        named_configs=["trajectories"],
        config_updates={"seed": 1, "progress": False},
        options={"--loglevel": "ERROR"},
    )
    for kind, ends in [
        *((f"k{count}", ends) for count, ends in ENDS.items()),
        ("truth", TRUE_ENDS),
    ]:
        for index, (x, penalty) in enumerate(ends):
            assert run.result[f"x_{kind}_start{index}"] == pytest.approx(x, abs=6e-5)
            assert run.result[f"penalty_{kind}_start{index}"] == pytest.approx(penalty, abs=6e-5)
    with records.connect() as database:
        metrics = database[records.run_id(run)].metrics
        assert metrics["x_k10_start2"].index.tolist() == list(range(6))
        assert metrics["x_k10_start2"].iloc[-1] == run.result["x_k10_start2"]


@pytest.mark.parametrize("penalty", [0.1, 0.5, 0.875, 2.0])
def test_mean_for_infinitely_many_copies(penalty):
    expected = 8 * (8 * penalty - 7) / (5 + 4 * penalty) ** 3
    assert mean_limit_estimate(penalty, 1.0, 0.5) == pytest.approx(expected, abs=1e-12)
    # The average over x ~ N(0, 1) of the limit at x, and that of estimates with many candidates.
    points, weights = np.polynomial.hermite_e.hermegauss(6)
    at = limit_estimate(points, penalty, 1.0, 0.5)
    assert weights @ at / math.sqrt(2 * math.pi) == pytest.approx(expected, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator, dtype=F64)
    noise = torch.randn(2000, 1000, generator=generator, dtype=F64)
    drawn = replay.estimates(x, penalty, noise, 1.0, 0.5)
    error = float(drawn.std()) / math.sqrt(2000)
    # With K candidates the mean is off by a term of order 1/K.
    assert float(drawn.mean()) == pytest.approx(expected, abs=4 * error + 2e-3)


def test_bias_changes_sign_before_the_truth_does():
    assert mean_limit_estimate(0.875, 1.0, 0.5) == pytest.approx(0, abs=1e-15)
    assert mean_limit_estimate(0.87, 1.0, 0.5) < 0 < mean_limit_estimate(0.88, 1.0, 0.5)
    assert true_hypergradient(0.88) < 0


def test_low_temperature_is_right_for_infinitely_many_copies_and_mute_for_a_few():
    truth = true_hypergradient(0.4)
    published = {0.5: -0.11965, 0.1: -0.19310, 0.01: -0.21594, 0.001: -0.21838}
    for temperature, expected in published.items():
        given = limit_estimate(0.3, 0.4, 1.0, temperature)
        assert given == pytest.approx(expected, abs=5e-6)
    assert abs(limit_estimate(0.3, 0.4, 1.0, 1e-3) - truth) < 3e-4
    noise = torch.tensor((0.5, -1.0, 2.0), dtype=F64)
    few = replay.estimates(torch.tensor(0.3, dtype=F64), 0.4, noise, 1.0, 1e-3)
    assert abs(float(few)) < 1e-100


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize(
    ("count", "sigma", "temperature"), [(2, 1e-2, 0.5), (10, 1e-2, 0.5), (2, 1e-3, 0.05)]
)
def test_small_perturbations_give_the_one_step_hypergradient(kind, count, sigma, temperature):
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(2_000_000 // count, count, generator=generator, dtype=F64)
    if kind == "sign":
        noise = noise.sign()
    x = torch.full((len(noise),), 0.3, dtype=F64)
    drawn = replay.estimates(x, 0.4, noise, sigma, temperature)
    drawn = drawn * count * temperature / (sigma**2 * (count - 1))
    # −(2x)(2(x − ½)) at x = 0.3
    assert float(drawn.mean()) == pytest.approx(0.24, abs=1.5e-3)


def test_half_of_the_pairs_of_sign_noise_give_exactly_zero():
    zero = []
    for pair in itertools.product((-1.0, 1.0), repeat=2):
        estimator = EvoGrad(
            2, 1.0, 0.5, noise=lambda candidate, name, p, pair=pair: p.new_tensor(pair[candidate])
        )
        zero.append(call(estimator, 0.3, 0.4) == 0.0)
        at = torch.tensor(0.3, dtype=F64)
        replayed = replay.estimates(at, 0.4, torch.tensor(pair, dtype=F64), 1.0, 0.5)
        assert (float(replayed) == 0.0) == zero[-1]
    assert zero == [True, False, False, True]
    drawn = [call(EvoGrad(2, 1.0, 0.5, seed=seed), 0.3, 0.4) == 0.0 for seed in range(200)]
    assert 0.4 < np.mean(drawn) < 0.6


def test_every_estimator_of_the_toolkit_is_measured_or_left_out_with_a_reason():
    built = estimators.build_estimators(2, 1.0, 0.5)
    assert estimators.missing_estimators([build(0) for build in built.values()]) == []
    found = estimators.measure(built, [0.4], lr=0.1, horizon=2, nodes=2, draws=2, progress=False)
    left_out = {label for label, moments in found.items() if moments.note}
    assert left_out == {"FirstOrder", "Leap", "Reptile", "Reversible", "Adjoint"}


def test_moments_over_x_are_exact():
    # One step from x with the learning rate η gives −η · 2x · 2(x⁺ − ½), x⁺ = ax + b.
    penalty, lr = 0.4, 0.1
    a, b = 1 - 2 * lr * (1 + penalty), 2 * lr
    built = estimators.build_estimators(5, 1.0, 0.5)
    label = "Unrolled, 1 step"
    found = estimators.measure(
        {label: built[label]}, [penalty], lr=lr, horizon=5, nodes=3, draws=1, progress=False
    )[label]
    assert found.mean[0] == pytest.approx(-4 * lr * a, rel=1e-12)
    # E[(ax² + (b − ½)x)²] = 3a² + (b − ½)²
    second = 16 * lr**2 * (3 * a**2 + (b - 0.5) ** 2)
    assert found.std[0] == pytest.approx(math.sqrt(second - found.mean[0] ** 2), rel=1e-12)
    bias, _ = found.errors([penalty])
    assert bias == pytest.approx(abs(-4 * lr * a - true_hypergradient(penalty)), rel=1e-12)


def test_long_horizons_and_implicit_differentiation_reach_the_truth():
    built = estimators.build_estimators(40, 1.0, 0.5)
    names = [n for n in built if n.startswith(("Unrolled, 40", "Implicit, 40", "SOBA", "Forward"))]
    found = estimators.measure(
        {name: built[name] for name in names},
        [0.4, 1.2],
        lr=0.1,
        horizon=40,
        nodes=2,
        draws=2,
        progress=False,
    )
    for moments in found.values():
        assert moments.errors([0.4, 1.2])[0] < 1e-3


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_gives_the_same_result(part):
    def run(seed):
        updates = {"seed": seed}
        options = {"--loglevel": "ERROR"}
        return experiment.run(
            named_configs=[part, "smoke"], config_updates=updates, options=options
        )

    first = run(3).result
    assert run(3).result == first
    assert run(4).result != first


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"part": "gradient"}, UnknownNameError, "Did you mean 'gradients'"),
        ({"candidates": [1]}, ConfigurationError, r"candidates is \[1\]; .* from 2 on"),
        ({"candidates": []}, ConfigurationError, r"candidates is \[\]; a list of at least 1"),
        ({"candidates": [2.5]}, ConfigurationError, r"candidates is \[2\.5\]"),
        ({"starts": [[1.0]]}, ConfigurationError, r"starts is \[\[1.0\]\]"),
        ({"sigma": 0.0}, ConfigurationError, "sigma is 0"),
        ({"temperature": -1.0}, ConfigurationError, "temperature is -1"),
        ({"sweep": {"sigma": [-1.0]}}, ConfigurationError, r"sweep\.sigma is \[-1\.0\]"),
        ({"trials": 0}, ConfigurationError, "trials is 0"),
        ({"penalties": {"count": 0}}, ConfigurationError, r"penalties\.count is 0"),
        ({"lr": 0.0}, ConfigurationError, "lr is 0"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        experiment.run(named_configs=["smoke"], config_updates=updates)


def test_command_line_tells_what_is_accepted(command_line):
    code, told = command_line("illustration", "with", "smoke", "sigma=-1.0")
    assert code == 2
    assert "sigma is -1.0; a finite number above 0 is needed" in told
    assert "Traceback" not in told
