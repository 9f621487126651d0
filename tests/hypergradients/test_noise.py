"""Noise that is drawn from a key: its moments, its shapes, what it depends on, its memory."""

import itertools

import pytest
import torch

from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients.noise import standard_noise, stream_noise

KINDS = ["sign", "gaussian"]
kinds = pytest.mark.parametrize("kind", KINDS)


def shapes(**sizes):
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}


@kinds
def test_names_shapes_and_types_are_those_of_the_tensors(kind):
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.float64),
        "c": torch.zeros(5, dtype=torch.bfloat16),
        "d": torch.zeros(4),
        "e": torch.zeros(0),
    }
    noise = standard_noise(tensors, kind, 3)
    assert list(noise) == list(tensors)
    for name, tensor in tensors.items():
        assert (noise[name].shape, noise[name].dtype) == (tensor.shape, tensor.dtype)
    streamed = dict(stream_noise(tensors, kind, 3))
    assert all(torch.equal(streamed[name], noise[name]) for name in tensors)
    assert not noise["a"].requires_grad


@kinds
def test_moments_and_independence_of_all_entries(kind):
    # Large and small tensors, of which some are drawn together.
    tensors = shapes(a=70_000, b=300, c=30_000, d=30_000, e=10_000, f=200_000)
    tensors["g"] = torch.zeros(70_000, dtype=torch.float32)
    noise = standard_noise(tensors, kind, 5)
    flat = torch.cat([tensor.double() for tensor in noise.values()])
    error = len(flat) ** -0.5
    assert abs(float(flat.mean())) < 4 * error
    assert float(flat.square().mean()) == pytest.approx(1, abs=6 * error)
    if kind == "sign":
        assert bool((flat.abs() == 1).all())
    else:
        assert float((flat.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=4 * error)
    # Nothing is drawn twice, whatever the lag: words of bits, parts, types.
    for one, other in itertools.combinations(noise.values(), 2):
        size = min(len(one), len(other))
        product = float((one[:size].double() * other[:size].double()).mean())
        assert abs(product) < 5 * size**-0.5
    for lag in (1, 2, 7, 8, 63, 64, 65, 128, 65_536):
        product = float((flat[lag:] * flat[:-lag]).mean())
        assert abs(product) < 5 * error


@kinds
def test_depends_on_the_key_and_on_nothing_else(kind):
    tensors = shapes(a=64, b=(3, 5))
    one, again, other = (standard_noise(tensors, kind, key)["a"] for key in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    assert torch.equal(standard_noise(tensors, kind, 1)["a"], one)
    assert torch.equal(torch.get_rng_state(), expected)


@kinds
def test_small_tensors_are_drawn_together_and_large_ones_alone(kind):
    def storages(**sizes):
        noise = standard_noise(shapes(**sizes), kind, 0)
        return [tensor.untyped_storage().data_ptr() for tensor in noise.values()]

    # Up to 65,536 entries, in the order that is given.
    assert len(set(storages(a=32_768, b=32_768))) == 1
    assert len(set(storages(a=32_768, b=32_769))) == 2
    assert len(set(storages(a=3, b=70_000, c=4, d=5))) == 3
    first, second, third = storages(a=40_000, b=20_000, c=10_000)
    assert first == second != third


@kinds
def test_a_reader_that_keeps_nothing_needs_the_memory_of_the_largest(kind):
    tensors = shapes(a=100_000, b=300_000, c=200_000, d=100_000)
    # The table of signs is made once, and stays.
    standard_noise(tensors, kind, 0)

    def read():
        for _, noise in stream_noise(tensors, kind, 0):
            del noise

    # Signs take a table of indices beside: four bytes for eight entries, then all bits of words.
    overhead = 1.2 if kind == "sign" else 1.0
    assert peak_memory(read) <= overhead * 8 * 300_000 + 1024


def test_numbers_of_signs_that_are_no_whole_words():
    for size in (1, 7, 8, 9, 63, 64, 65, 1000):
        noise = standard_noise(shapes(a=size), "sign", 9)["a"]
        assert noise.shape == (size,) and bool((noise.abs() == 1).all())
    # Both signs are there, at every place in a byte.
    noise = standard_noise(shapes(a=6400), "sign", 9)["a"].view(-1, 8)
    assert bool((noise.mean(0).abs() < 0.15).all()) and bool((noise.std(0) > 0.9).all())
