"""Estimators against finite differences, and the check itself against wrong estimators."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from tests import bank

EXACT = {
    "Unrolled(1)": lambda: Unrolled(1),
    "Unrolled(4)": lambda: Unrolled(4),
    "EvoGrad, graphs kept": lambda: EvoGrad(3, 0.1, 0.5, noise="gaussian", streamed=False),
    "EvoGrad, streamed": lambda: EvoGrad(3, 0.1, 0.5, noise="gaussian", streamed=True),
}


def check(case, estimator, **options):
    return mt.check_hypergradient(
        case.problem,
        case.inner,
        estimator,
        case.batches(estimator.horizon),
        case.valid_batch,
        **options,
    )


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize("name", bank.CASES)
def test_agrees_with_finite_differences(name, make):
    case, estimator = bank.CASES[name](), make()
    if case.optimizer_only and isinstance(estimator, EvoGrad):
        pytest.skip("EvoGrad does not read the optimizer")
    result = check(case, estimator)
    assert result.relative_error < 1e-6, str(result)
    assert result.cosine > 1 - 1e-9


@pytest.mark.parametrize("name", bank.CASES)
def test_agrees_from_a_later_state(name):
    case = bank.CASES[name]()
    state = case.state
    for batch in case.batches(3):
        state, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), batch)
    result = check(case, Unrolled(2), state=state)
    assert result.relative_error < 1e-6, str(result)


class Scaled(Unrolled):
    """Wrong by a factor."""

    def estimate(self, *arguments):
        result = super().estimate(*arguments)
        gradient = {name: 1.01 * tensor for name, tensor in result.gradient.items()}
        return dataclasses.replace(result, gradient=gradient)


class Silent(Unrolled):
    """Wrong in one tensor."""

    def estimate(self, *arguments):
        result = super().estimate(*arguments)
        first = next(iter(result.gradient))
        return dataclasses.replace(
            result, gradient=result.gradient | {first: torch.zeros_like(result.gradient[first])}
        )


def test_wrong_estimators_are_found_out():
    scaled = check(bank.small_net(), Scaled(2))
    assert scaled.relative_error == pytest.approx(0.01, rel=1e-3)
    assert scaled.cosine > 1 - 1e-9
    silent = check(bank.small_net(), Silent(2))
    assert silent.relative_error > 0.01
    assert "relative error" in str(silent)


def test_another_reference_shows_the_distance_to_the_exact_one():
    result = check(bank.ridge(), EvoGrad(2, 1e-3, 0.05), reference=Unrolled(1))
    assert result.relative_error > 0.5
    assert check(bank.ridge(), Unrolled(1), reference=Unrolled(1)).relative_error < 1e-6


def test_single_precision_problems_are_checked_in_double_and_left_alone():
    case = bank.small_net()
    case.problem.model.float()
    case.problem.meta.float()
    before = [p.clone() for p in case.problem.model.parameters()]
    case.train_batches = [(inputs.float(), targets) for inputs, targets in case.train_batches]
    case.valid_batch = (case.valid_batch[0].float(), case.valid_batch[1])
    assert check(case, Unrolled(1)).relative_error < 1e-6
    after = list(case.problem.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert after[0].dtype == torch.float32


def test_only_so_many_coordinates_are_compared():
    result = check(bank.small_net(), Unrolled(1), coordinates=4)
    assert result.reference.shape == result.estimate.shape == (4,)
    assert result.relative_error < 1e-6


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"coordinates": 0}])
def test_arguments_out_of_range(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        check(bank.ridge(), Unrolled(1), **options)
