"""The global generators of Python and NumPy, by memory and by their public functions."""

import random

import numpy as np
import pytest

from metatoolkit.global_generators import GLOBAL_GENERATORS, GlobalGenerators

WAYS = {"memory": GLOBAL_GENERATORS, "functions": GlobalGenerators(direct=False)}
ways = pytest.mark.parametrize("generators", WAYS.values(), ids=WAYS.keys())


@pytest.fixture(autouse=True)
def _restored():
    bits, python, numpy = np.random.get_bit_generator(), random.getstate(), np.random.get_state()
    yield
    np.random.set_bit_generator(bits)
    random.setstate(python)
    np.random.set_state(numpy)


def draw():
    """Draw in each way that either has; normal numbers come in pairs, of which one is kept."""
    found = [random.random(), random.gauss(0, 1), random.getrandbits(40), random.randint(0, 9)]
    found += [
        np.random.rand(),
        np.random.randn(),
        np.random.randint(10**6),
        np.random.permutation(9),
    ]
    return [np.asarray(value).tolist() for value in found]


def test_the_memory_of_this_interpreter_is_known():
    GLOBAL_GENERATORS.save()
    assert GLOBAL_GENERATORS._words is not None
    assert GLOBAL_GENERATORS._key is not None
    assert GLOBAL_GENERATORS._gauss is not None


@ways
@pytest.mark.parametrize("kept", [0, 1, 5])
def test_restores_both_to_the_last_number(generators, kept):
    random.seed(3)
    np.random.seed(4)
    for _ in range(kept):
        random.gauss(0, 1)
        np.random.randn()
    before = random.getstate(), np.random.get_state(legacy=False)
    saved = generators.save()
    expected = draw() + draw()
    generators.restore(saved)
    after = random.getstate(), np.random.get_state(legacy=False)
    assert before[0] == after[0]
    assert (
        before[1]["gauss"] == after[1]["gauss"] and before[1]["has_gauss"] == after[1]["has_gauss"]
    )
    assert np.array_equal(before[1]["state"]["key"], after[1]["state"]["key"])
    assert draw() + draw() == expected


@ways
def test_a_key_gives_the_same_numbers_whatever_was_drawn_before(generators):
    found = []
    for before in (0, 1, 700):
        random.gauss(0, 1)
        np.random.randn(before)
        saved = generators.save()
        generators.seed(5 << 40 | 3)
        found.append(draw() + draw())
        generators.restore(saved)
    assert found[0] == found[1] == found[2]


def test_both_ways_draw_the_same():
    found = []
    for generators in WAYS.values():
        saved = generators.save()
        generators.seed(2**63 - 1)
        found.append(draw())
        generators.restore(saved)
    assert found[0] == found[1]


@ways
@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, 1 << 32 | 1), (1 << 32, 2 << 32)])
def test_every_bit_of_the_key_counts(generators, one, other):
    found = []
    for key in (one, other):
        saved = generators.save()
        generators.seed(key)
        found.append((random.random(), np.random.rand()))
        generators.restore(saved)
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]
    # The two are no copies of each other either.
    assert found[0][0] != found[0][1]


@ways
@pytest.mark.parametrize(
    "use",
    [
        random.random,
        lambda: random.seed(5),
        lambda: random.gauss(0, 1),
        np.random.rand,
        np.random.randn,
        lambda: np.random.seed(6),
        lambda: np.random.shuffle([1, 2, 3]),
        lambda: np.random.set_bit_generator(np.random.PCG64(3)),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_notices_each_use(generators, use, kept):
    random.seed(3)
    np.random.seed(4)
    if kept:
        random.gauss(0, 1)
        np.random.randn()
    saved = generators.save()
    assert not generators.moved(saved)
    use()
    assert generators.moved(saved)
    generators.restore(saved)
    assert not generators.moved(saved)


@ways
def test_another_bit_generator_of_numpy_is_put_back(generators):
    other = np.random.PCG64(3)
    np.random.set_bit_generator(other)
    np.random.randn()
    before = np.random.get_state(legacy=False)
    saved = generators.save()
    generators.seed(7)
    first = draw()
    generators.restore(saved)
    assert np.random.get_bit_generator() is other
    assert np.random.get_state(legacy=False) == before
    np.random.set_bit_generator(np.random.MT19937(1))
    saved = generators.save()
    generators.seed(7)
    assert draw() == first
    generators.restore(saved)


@ways
def test_a_body_that_changes_the_bit_generator_is_undone(generators):
    bits = np.random.get_bit_generator()
    saved = generators.save()
    expected = np.random.rand()
    np.random.set_bit_generator(np.random.PCG64(3))
    generators.restore(saved)
    assert np.random.get_bit_generator() is bits
    assert np.random.rand() == expected
