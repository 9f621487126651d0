"""Guided EvoGrad where it chooses its radius and the temperature itself."""

import dataclasses
import math

import pytest
import torch
from torch.utils._pytree import tree_map

import metatoolkit as mt
from metatoolkit.hypergradients import GuidedEvoGrad, OneStep
from metatoolkit.testing import bank
from tests.hypergradients.test_finite_difference import without_outer_gradient
from tests.hypergradients.test_guided_evograd import (
    F64,
    NAMES,
    flat,
    relative_error,
    with_inner,
)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_a_chosen_sigma_gives_the_one_step_hypergradient(name, dtype):
    case = with_inner(bank.PROBLEMS[name](), mt.inner.SGD(lr=0.3))
    exact = case.call(OneStep(lookahead=False))
    case = in_dtype(case, dtype)
    result = case.call(GuidedEvoGrad(rescale=0.3))
    tolerance = 1e-4 if dtype == F64 else 1e-2
    assert relative_error(in_float64(result), exact) < tolerance
    details = {name: float(value) for name, value in result.details.items() if value.dim() == 0}
    assert 0 <= details["saturation"] <= 1.1e-4
    assert details["rounding"] < tolerance


def in_dtype(case, dtype):
    case.problem.model.to(dtype)
    case.problem.meta.to(dtype)

    def cast(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    train, valid = tree_map(cast, (case.train_batches, case.valid_batch))
    return dataclasses.replace(case, train_batches=train, valid_batch=valid)


def in_float64(result):
    wide = {name: gradient.double() for name, gradient in result.gradient.items()}
    return dataclasses.replace(result, gradient=wide)


def steep(case, factor):
    """The same problem with a training loss that is so many times as large."""
    loss = case.problem.train_loss
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: factor * loss(model, meta, batch),
        case.problem.valid_loss,
    )
    return dataclasses.replace(case, problem=problem, inner=mt.inner.SGD(lr=0.1))


def test_a_chosen_sigma_does_not_saturate_the_softmax_where_a_fixed_one_does():
    case = steep(in_dtype(bank.small_net(), torch.float32), 200.0)
    exact = in_float64(case.call(OneStep(lookahead=False)))
    fixed = case.call(GuidedEvoGrad(0.01, rescale=0.1))
    chosen = case.call(GuidedEvoGrad(rescale=0.1))
    assert float(fixed.details["saturation"]) > 0.5
    assert relative_error(in_float64(fixed), exact) > 0.5
    assert relative_error(in_float64(chosen), exact) < 0.02
    losses = chosen.details["train_losses"]
    spread = float((losses[0] - losses[1]).abs())
    assert spread > 0.01
    assert float(chosen.details["temperature"]) == pytest.approx(50 * spread)
    expected = 1 - 1 / math.cosh(0.01) ** 2
    assert float(chosen.details["saturation"]) == pytest.approx(expected, abs=1e-6)


def test_sigma_balances_rounding_and_truncation():
    # The outer loss is 0.04 and its gradient −0.4, so that it would be used up over 0.1.
    case = bank.illustration()
    result = case.call(GuidedEvoGrad())
    unit = torch.finfo(F64).eps
    assert float(result.details["sigma"]) == pytest.approx(0.1 * unit ** (1 / 3), rel=1e-6)
    sides = [(0.3 + sign * float(result.details["sigma"])) ** 2 for sign in (1, -1)]
    rounding = unit / 2 * max(sides) / abs(sides[0] - sides[1])
    assert float(result.details["rounding"]) == pytest.approx(rounding, rel=1e-3)
    assert relative_error(result, case_exact(case)) < 1e-6


def case_exact(case):
    return with_inner(case, mt.inner.SGD(lr=1.0)).call(OneStep(lookahead=False))


def test_a_chosen_sigma_without_an_outer_gradient_gives_zero():
    result = without_outer_gradient().call(GuidedEvoGrad())
    assert all(not gradient.any() for gradient in result.gradient.values())


def test_a_chosen_sigma_works_in_bfloat16_and_tells_its_rounding():
    case = in_dtype(bank.illustration(), torch.bfloat16)
    result = case.call(GuidedEvoGrad())
    assert result.gradient["value"].dtype == torch.bfloat16
    assert 0.001 < float(result.details["rounding"]) < 1
    expected = float(flat(case_exact(bank.illustration())))
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=0.2)
