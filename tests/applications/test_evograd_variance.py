"""Error of EvoGrad by how candidates are drawn: the draws, the scale, the figure."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from applications.evograd_variance.directions import DIRECTIONS, draw, second_moment
from applications.evograd_variance.experiment import COUNTS, experiment
from applications.evograd_variance.study import STUDIES
from metatoolkit import records
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import EvoGrad, OneStep
from metatoolkit.testing import bank
from tests.drawings import lines

SIZE = 8
GRADIENTS = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def covariance(noise):
    centered = noise - noise.mean(0)
    return centered.T @ centered / len(noise)


@pytest.mark.parametrize("number", COUNTS)
@pytest.mark.parametrize("kind", DIRECTIONS)
def test_the_mean_covariance_is_the_identity_where_it_is_said_to_be(kind, number):
    draws = 1500
    found = [covariance(draw(kind, GRADIENTS, number, seed)) for seed in range(draws)]
    mean = torch.stack(found).mean(0) / second_moment(kind, number)
    expected = torch.eye(SIZE, dtype=torch.float64)
    if kind == "span" or (kind == "last_gradient" and number == 2):
        kept = GRADIENTS if kind == "span" else GRADIENTS[-1:]
        basis = torch.linalg.qr(kept.T)[0]
        expected = basis @ basis.T
    assert float((mean - expected).abs().max()) < 0.15


@pytest.mark.parametrize("number", COUNTS)
def test_the_pair_along_the_last_gradient_takes_it_without_noise(number):
    last = GRADIENTS[-1]
    for seed in range(3):
        seen = covariance(draw("last_gradient", GRADIENTS, number, seed)) @ last
        torch.testing.assert_close(seen, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_variances_on_a_quadratic_are_in_the_order_of_the_table(number):
    case = bank.quadratic(size=SIZE, inner=mt.inner.SGD(lr=0.1))
    call = OneStep(lookahead=False)
    exact = case.call(call).gradient["value"]
    gradients = GRADIENTS.clone()
    # The outer gradient is told, up to a part across it, by the last one.
    state = case.state
    parameters = {n: p.clone().requires_grad_() for n, p in state.parameters.items()}
    loss = case.problem.evaluate_valid(
        parameters, case.problem.meta_parameters(), state.buffers, case.valid_batch, 0
    )
    (outer,) = torch.autograd.grad(loss, list(parameters.values()))
    gradients[-1] = outer.flatten() + 0.1 * outer.norm() * gradients[-1] / gradients[-1].norm()

    def error(kind):
        squares = []
        for seed in range(300):
            noise = draw(kind, gradients, number, seed)
            factor = (number - 1) / number / second_moment(kind, number)
            estimator = EvoGrad(
                number,
                1e-4,
                5.0,
                noise=lambda k, name, parameter, noise=noise: noise[k].view_as(parameter),
                rescale=0.1 * factor,
            )
            squares.append((case.call(estimator).gradient["value"] - exact).square().sum())
        return float(torch.stack(squares).mean() / exact.square().sum())

    errors = {kind: error(kind) for kind in ("independent", "antithetic", "last_gradient")}
    # K/2 directions where independent candidates have K − 1.
    assert errors["antithetic"] / errors["independent"] == pytest.approx(
        (number - 1) / (number / 2), rel=0.35
    )
    assert errors["last_gradient"] < 0.1 * errors["independent"]


@pytest.mark.parametrize(
    "labels",
    [("independent", "guided (passes of K = 2)"), pytest.param((), marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_the_study_is_run_and_drawn(tmp_path, drawn, labels):
    (study,) = STUDIES
    rows = {
        label: dataclasses.replace(row, named=("smoke",))
        for label, row in study.rows.items()
        if label in labels or not labels
    }
    study = dataclasses.replace(study, rows=rows, seeds=(1,))
    jobs = jobs_of(study)
    for job in jobs:
        outcome = run_job(job)
        assert not outcome.error
        numbers = outcome.result
        candidates = job.updates.get("directions") not in ("guided", "averaged")
        assert len(numbers) == (6 if candidates else 2)
        assert all(0 <= number < 1e4 for number in numbers.values())
    with records.connect() as database:
        frame = collect(study, jobs, database)
    study.draw(frame, tmp_path / "errors.png")
    for axis, when in zip(drawn.axes("errors.png", tmp_path), ("early", "late"), strict=True):
        shown = lines(axis)
        assert list(shown) == list(rows)
        for label in rows:
            chosen = frame[frame["row"] == label]
            expected = [float(chosen[f"{when}, K = {number}"].iloc[0]) for number in COUNTS]
            assert shown[label][1] == pytest.approx(expected, nan_ok=True)


def test_the_guided_direction_is_far_nearer_than_random_ones():
    updates = {"seed": 2, "early": 10, "late": 11, "draws": 4}
    options = {"--loglevel": "ERROR"}
    errors = {
        kind: experiment.run(config_updates={**updates, "directions": kind}, options=options).result
        for kind in ("independent", "last_gradient", "guided")
    }
    for kind in ("last_gradient", "guided"):
        assert errors[kind]["early_k2"] < 0.1 * errors["independent"]["early_k2"]
