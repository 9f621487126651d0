"""Momentum in fixed-point integers: what it computes, what it refuses, that nothing is lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import (
    ConfigurationError,
    FixedPointError,
    NonFiniteError,
    UnsupportedError,
)
from metatoolkit.inner import ReversibleMomentum
from metatoolkit.inner.fixed_point import (
    EMPTY,
    LostBits,
    divide,
    fraction,
    multiply,
    numerator,
    spilled,
)
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing import bank
from metatoolkit.testing.estimators.precision import converted

MOMENTA = (0.5, 0.9, 0.98, 0.99)


def random_integers(count: int, bits: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**bits), 2**bits, (count,), generator=generator)


@pytest.mark.parametrize("momentum", [*MOMENTA, 2e-4, 1 - 1e-12])
def test_a_thousand_products_are_taken_back_bit_for_bit(momentum):
    start = random_integers(50)
    counts = [numerator(momentum * (1 - 1e-3 * (step % 3))) for step in range(1000)]
    value, head, lost = start, torch.full_like(start, EMPTY), LostBits()
    generator = torch.Generator().manual_seed(1)
    pushes = torch.randint(-(2**50), 2**50, (1000, 50), generator=generator)
    for count, push in zip(counts, pushes, strict=True):
        lost.push(spilled(head, count))
        value, head = multiply(value, head, count)
        assert bool(((head >= EMPTY) & (head < EMPTY * 2**16)).all())
        value = value + push
    assert bool((value < 0).any())
    for count, push in zip(reversed(counts), pushes.flip(0), strict=True):
        value, head = divide(value - push, head, count, lost)
    assert torch.equal(value, start)
    assert bool((head == EMPTY).all())
    assert lost.count == 0


@pytest.mark.parametrize("momentum", MOMENTA)
def test_products_are_off_by_less_than_one_unit(momentum):
    value, head = random_integers(1000), torch.full((1000,), EMPTY + 12345)
    count = numerator(momentum)
    found, _ = multiply(value, head, count)
    for one, product in zip(value.tolist(), found.tolist(), strict=True):
        assert abs(product * 2**30 - one * count) < 2**30


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_store_takes_the_entropy(momentum):
    size, steps = 200, 1000
    value, head, lost = random_integers(size), torch.full((size,), EMPTY), LostBits()
    count = numerator(momentum)
    for push in torch.randint(-(2**50), 2**50, (steps, size)):
        lost.push(spilled(head, count))
        value, head = multiply(value, head, count)
        value = value + push
    stored = (16 * lost.count + float((head.double() / EMPTY).log2().sum())) / size
    bound = steps * math.log2(1 / momentum)
    assert abs(stored - bound) <= 2 + 0.005 * bound


def test_the_fraction_is_near_the_momentum():
    momenta = torch.rand(1000, dtype=torch.float64) * 0.99 + 1e-3
    assert float((fraction(numerator(momenta)) - momenta).abs().max()) <= 2**-31
    for momentum, count in zip(momenta[:9].tolist(), numerator(momenta)[:9].tolist(), strict=True):
        assert numerator(momentum) == count


def test_words_come_back_in_order_from_a_stack_that_grows():
    lost = LostBits()
    lost.push(torch.arange(300))
    lost.push(torch.tensor([65535, 0]))
    assert lost.nbytes == 604
    assert lost.pop(2).tolist() == [65535, 0]
    assert lost.pop(300).tolist() == list(range(300))
    with pytest.raises(IndexError, match="1 words are asked for, and 0 are left"):
        lost.pop(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_sgd_with_a_dampening_that_equals_the_momentum(dtype):
    """But for the first step, where torch does not dampen."""
    instance = converted(bank.matrices(), dtype, dtype)
    problem = instance.problem
    meta = problem.meta_parameters()
    state = ReversibleMomentum(0.1, 0.9).init(problem)
    velocity = {name: torch.zeros_like(p) for name, p in state.parameters.items()}
    values = {name: p.clone() for name, p in state.parameters.items()}
    inner, momentum = ReversibleMomentum(0.1, 0.9), fraction(numerator(0.9))
    assert momentum != 0.9
    for batch in instance.batches(20):
        leaves = {name: p.clone().requires_grad_() for name, p in values.items()}
        _, gradients, _ = inner.gradients(problem, state.replaced(parameters=leaves), meta, batch)
        for name, gradient in gradients.items():
            velocity[name] = momentum * velocity[name] + (1 - momentum) * gradient
            values[name] = values[name] - 0.1 * velocity[name]
        state, _ = inner.step(problem, state, meta, batch)
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(state.parameters, values, **close)


def line(start: float, slope: float = 1.0) -> BilevelProblem:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, start)

    def loss(model: nn.Module, meta: nn.Module, batch: float) -> Tensor:
        return batch * slope * model.weight.sum() + 0 * meta.value

    return BilevelProblem(model, bank.Value(1.0), loss, loss)


@pytest.mark.parametrize(
    ("start", "slope", "what"),
    [
        (20_000.0, 1.0, "parameter 'weight' reaches 2e"),
        (16_383.0, -1e3, "a parameter reaches"),
        (0.0, 1e9, "a gradient reaches"),
    ],
)
def test_overflow_is_told_with_its_remedies(start, slope, what):
    inner = ReversibleMomentum(1.0, 0.9)
    problem = line(start, slope)
    with pytest.raises(FixedPointError, match=f"{what}.*16384|{what}.*1.64e"):
        state = inner.init(problem)
        for _ in range(3):
            state, _ = inner.step(problem, state, problem.meta_parameters(), 1.0)


def test_a_velocity_that_sums_up_to_too_much_is_told():
    inner = ReversibleMomentum(1e-6, 0.9, fraction_bits=56)
    problem = line(0.0, 100.0)
    state = inner.init(problem)
    with pytest.raises(FixedPointError, match=r"a velocity reaches 65.*below 64"):
        for _ in range(30):
            state, _ = inner.step(problem, state, problem.meta_parameters(), 1.0)


def test_gradients_that_are_not_finite_are_told():
    inner, problem = ReversibleMomentum(0.1), line(0.0)
    with pytest.raises(NonFiniteError, match="a gradient is not finite"):
        inner.step(problem, inner.init(problem), problem.meta_parameters(), math.nan)


@pytest.mark.parametrize("momentum", [0.0, 1e-5, 1.0])
def test_momenta_out_of_range_are_refused(momentum):
    with pytest.raises(ConfigurationError, match=f"momentum is {momentum}; accepted"):
        ReversibleMomentum(0.1, momentum)
    with pytest.raises(ConfigurationError, match="momentum is"):
        ReversibleMomentum(0.1, groups=[{"params": ["*"], "momentum": momentum}])
    problem = line(0.0)
    inner = ReversibleMomentum(0.1, lambda meta, step: torch.tensor(momentum))
    with pytest.raises(ConfigurationError, match=r"momentum is .*Use SGD"):
        inner.step(problem, inner.init(problem), problem.meta_parameters(), 1.0)


@pytest.mark.parametrize("bits", [7, 57])
def test_the_point_may_not_be_anywhere(bits):
    with pytest.raises(ConfigurationError, match=f"fraction_bits is {bits}; accepted"):
        ReversibleMomentum(0.1, fraction_bits=bits)


def test_complex_parameters_are_refused():
    model = nn.Linear(1, 1, dtype=torch.complex64)
    problem = BilevelProblem(model, bank.Value(1.0), lambda *_: None, lambda *_: None)
    with pytest.raises(UnsupportedError, match="'weight' is complex"):
        ReversibleMomentum(0.1).init(problem)


def test_parameters_that_something_else_moved_are_taken_as_they_are():
    inner, problem = ReversibleMomentum(0.1, 0.5), line(1.0)
    meta = problem.meta_parameters()
    state, _ = inner.step(problem, inner.init(problem), meta, 1.0)
    moved = state.replaced(parameters={"weight": torch.full((1, 1), 7.0).double()})
    after, _ = inner.step(problem, moved, meta, 1.0)
    # The velocity is 0.5, then 0.75.
    assert float(after.parameters["weight"]) == pytest.approx(7.0 - 0.075, abs=1e-14)


def test_groups_and_ascent_have_their_own_values():
    problem = line(1.0)
    group = [{"params": ["weight"], "momentum": 0.5, "lr": 1.0}]
    inner = ReversibleMomentum(0.1, 0.9, group, maximize=True)
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), 1.0)
    assert float(state.parameters["weight"]) == pytest.approx(1.5, abs=1e-14)
    assert "momentum=0.9, maximize=True, fraction_bits=48" in repr(inner)
