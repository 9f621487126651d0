"""Random keys, and the global generators that follow them."""

import random
import types

import numpy as np
import pytest
import torch

from metatoolkit.randomness import (
    fold_in,
    go_to,
    go_to_portable,
    has_moved,
    keys,
    place,
    portable,
    seeded,
)


def draw():
    return torch.rand(()).item(), random.random(), np.random.randn(), random.gauss(0, 1)


def test_a_key_gives_the_same_numbers_of_all_generators():
    found = []
    for key in (7, 8, 7):
        draw()
        with seeded(key):
            found.append([draw(), draw()])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("python", [True, False])
def test_the_generators_go_on_as_if_nothing_had_been(python):
    start = place()
    expected = [draw() for _ in range(3)]
    go_to(start)
    found = []
    for _ in range(3):
        found.append(draw())
        with seeded(3, python=python) as drawing:
            draw()
        assert drawing.missed is not python
    assert found == expected


def test_an_error_in_the_body_restores_too():
    start = place()
    expected = draw()
    go_to(start)
    with pytest.raises(ZeroDivisionError), seeded(3):
        draw()
        raise ZeroDivisionError
    assert draw() == expected


def test_what_draws_nothing_is_not_missed():
    with seeded(3, python=False) as drawing:
        torch.rand(3)
        assert drawing.missed is False
    assert drawing.missed is False


class Module:
    """Stands for a torch module of a device, with its generator on the CPU."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def get_rng_state(self):
        return self.generator.get_state()

    def set_rng_state(self, state):
        self.generator.set_state(state)

    def manual_seed(self, seed):
        self.generator.manual_seed(seed)

    def draw(self):
        return torch.rand((), generator=self.generator).item()


@pytest.mark.parametrize("listed", [True, False])
def test_the_generator_of_each_device_is_seeded_and_restored(monkeypatch, listed):
    device, module = torch.device("mps", 0), Module()
    known = types.SimpleNamespace(default_generators=(module.generator,)) if listed else module
    monkeypatch.setattr(torch, "get_device_module", lambda device: known)
    keys._device_generator.cache_clear()
    module.draw()
    before = module.get_rng_state()
    found = []
    for key in (5, 6, 5):
        with seeded(key, [device, torch.device("cpu")]):
            found.append(module.draw())
        assert torch.equal(module.get_rng_state(), before)
    assert found[0] == found[2] != found[1]
    keys._device_generator.cache_clear()


def test_a_device_without_a_generator_is_left_out():
    with seeded(3, [torch.device("meta")]):
        torch.rand(())


def test_keys_are_those_of_splitmix():
    # The first five numbers that SplitMix64 (Steele et al. 2014) gives from the seed 1234567.
    numbers = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [fold_in(1234567, index) for index in range(5)] == [n >> 1 for n in numbers]


def test_keys_of_all_integers_are_apart():
    keys = [fold_in(seed, *data) for seed in (0, 1, 2**63, -5) for data in DATA]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    # Each bit is as often set as not.
    bits = np.array([[key >> place & 1 for place in range(63)] for key in keys])
    assert abs(bits.mean(0) - 0.5).max() < 0.15
    # One more number is another key, and order matters.
    assert fold_in(3, 1, 2) != fold_in(3, 2, 1) != fold_in(3, 1)
    assert fold_in(fold_in(3, 1), 2) != fold_in(3, 1, 2)


DATA = [*((n,) for n in range(-5, 20)), *((n, m) for n in range(6) for m in range(-2, 6))]
DATA += [(n, m, k) for n in range(3) for m in range(3) for k in range(-1, 3)]


USES = {
    "torch": lambda: torch.rand(3),
    "python": random.random,
    "python, normal": lambda: random.gauss(0, 1),
    "numpy": np.random.rand,
    "numpy, normal": np.random.randn,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_draw_from_any_generator_is_a_move(use):
    before = place()
    assert not has_moved(before)
    torch.rand(2, generator=torch.Generator()), random.Random(1).random()
    np.random.default_rng(1).normal()
    assert not has_moved(before)
    use()
    assert has_moved(before)
    go_to(before)
    assert not has_moved(before)


def test_only_torch_tells_of_a_place_without_the_others():
    cpu, _, others = place()
    random.random()
    assert not has_moved((cpu, None, others))
    torch.rand(1)
    assert has_moved((cpu, None, others))
    # The others stay where they are by now.
    expected = random.getstate()
    go_to((cpu, None, others))
    assert not has_moved((cpu, None, others)) and random.getstate() == expected


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_a_place_goes_to_another_process(kind):
    bits = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(kind(5))
        # Of each pair of normal numbers one is kept.
        draw()
        then = place()
        expected = [draw() for _ in range(3)]
        now = place()
        saved = portable(then)
        # Nothing has moved by it.
        assert not has_moved(now)
        assert saved["numpy"]["bit_generator"] == kind.__name__
        np.random.set_bit_generator(np.random.MT19937(11))
        random.seed(9), torch.manual_seed(9)
        draw()
        go_to_portable(saved)
        assert [draw() for _ in range(3)] == expected
    finally:
        np.random.set_bit_generator(bits)


def test_a_bit_generator_of_the_same_kind_is_kept():
    saved = portable(place())
    bits = np.random.get_bit_generator()
    np.random.rand()
    go_to_portable(saved)
    assert np.random.get_bit_generator() is bits


def test_the_present_device_is_meant_where_none_is_numbered(monkeypatch):
    first, second = Module(), Module()
    known = types.SimpleNamespace(
        default_generators=(first.generator, second.generator), current_device=lambda: 1
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: known)
    keys._device_generator.cache_clear()
    before = first.get_rng_state(), second.get_rng_state()
    with seeded(3, [torch.device("mps")]):
        assert torch.equal(first.get_rng_state(), before[0])
        assert not torch.equal(second.get_rng_state(), before[1])
        expected = second.draw()
    with seeded(3, [torch.device("mps", 0)]):
        assert first.draw() == expected
        assert torch.equal(second.get_rng_state(), before[1])
    keys._device_generator.cache_clear()


def test_several_numbers_are_mixed_in_one_after_another():
    def splitmix(state):
        # The next number of a SplitMix64 generator that stands at a state.
        mixed = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))

    with np.errstate(over="ignore"):
        for key in (0, 1, 1234567, 2**63 - 1):
            assert fold_in(key, 0) == int(splitmix(key)) >> 1
            assert fold_in(key, 0, 0) == int(splitmix(splitmix(key))) >> 1
            assert fold_in(key, 0, 0, 0) == int(splitmix(splitmix(splitmix(key)))) >> 1
    # Integers count modulo 2**64.
    assert fold_in(-5, -1, 3) == fold_in(2**64 - 5, 2**64 - 1, 3 + 2**64)
    assert fold_in(2**64 + 3) == fold_in(3) == 1
