"""The generator of torch on the CPU, read where it lies in memory."""

import random

import numpy as np
import pytest
import torch

from metatoolkit.randomness import go_to, place, seeded, torch_generator, undrawn
from metatoolkit.randomness.torch_generator import TORCH_GENERATOR, TorchGenerator

DRAWS = {
    "a word": lambda g: torch.rand((), generator=g),
    "all words": lambda g: torch.rand(624, generator=g),
    "all words, many times": lambda g: torch.rand(20 * 624, generator=g),
    "a normal number": lambda g: torch.randn((), generator=g),
    "many normal numbers": lambda g: torch.randn(1000, generator=g),
    "a double": lambda g: torch.randn((), dtype=torch.float64, generator=g),
    "an order": lambda g: torch.randperm(9, generator=g),
    "a mask": lambda g: torch.empty(7).bernoulli_(0.5, generator=g),
    "a new seed": lambda g: g.manual_seed(8),
}


@pytest.fixture
def generator():
    found = torch.Generator()
    found.manual_seed(3)
    return found


def test_the_memory_of_this_torch_is_known():
    assert TORCH_GENERATOR.known


@pytest.mark.parametrize("before", [0, 1, 5, 623, 624])
@pytest.mark.parametrize("draw", DRAWS)
def test_each_draw_is_seen_and_taken_back(generator, draw, before):
    read = TorchGenerator(generator)
    for _ in range(before):
        torch.rand((), generator=generator)
    state, saved = generator.get_state(), read.save()
    assert not read.moved(saved)
    DRAWS[draw](generator)
    assert read.moved(saved)
    read.restore(saved)
    assert not read.moved(saved)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_second_normal_number_of_a_pair_is_a_draw(generator, dtype):
    read = TorchGenerator(generator)
    torch.randn((), dtype=dtype, generator=generator)
    saved = read.save()
    second = torch.randn((), dtype=dtype, generator=generator)
    assert read.moved(saved)
    read.restore(saved)
    assert torch.equal(torch.randn((), dtype=dtype, generator=generator), second)


def test_a_state_that_was_set_to_what_it_was_has_not_moved(generator):
    read = TorchGenerator(generator)
    torch.randn((), generator=generator)
    state, saved = generator.get_state(), read.save()
    torch.randn(700, generator=generator)
    generator.set_state(state)
    assert not read.moved(saved)


@pytest.mark.parametrize(
    "name, value", [("_SEARCHED", 64), ("_address", lambda generator: 0)], ids=["place", "address"]
)
def test_another_layout_is_not_read(name, value, monkeypatch, generator):
    monkeypatch.setattr(torch_generator, name, value)
    read = TorchGenerator(generator)
    assert not read.known
    saved = read.save()
    torch.rand(3, generator=generator)
    assert not read.moved(saved)


@pytest.mark.parametrize("known", [True, False])
def test_a_body_that_was_not_seeded_is_taken_back(known, monkeypatch):
    monkeypatch.setattr(TORCH_GENERATOR, "known", known)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with seeded(9) as body:
        first = torch.randn(3)
    assert body.drew is known
    assert torch.equal(torch.get_rng_state(), state)
    if known:
        with undrawn() as body:
            other = torch.randn(3)
        assert body.drew and not body.missed and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)
        with undrawn() as body:
            torch.ones(3)
        assert not body.drew


@pytest.mark.parametrize("draw", [random.random, np.random.randn])
def test_draws_of_python_and_numpy_are_taken_back_too(draw):
    first = draw()
    start = place()
    expected = draw()
    go_to(start)
    with pytest.raises(ZeroDivisionError), undrawn() as body:
        assert draw() == expected != first
        raise ZeroDivisionError
    assert body.missed and not body.drew
    assert draw() == expected
