"""The global generators of Python and NumPy, by memory and by their public functions."""

import random
import sys
import types

import numpy as np
import pytest

from metatoolkit.randomness import global_generators
from metatoolkit.randomness.global_generators import GLOBAL_GENERATORS, GlobalGenerators

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


NUMBERS = {
    5: (0.9721880942112323, 0.22199317108973948, -1.0430613505547996, -0.2939598035905121),
    1099511640121: (
        0.48083305694961576,
        0.0775255221402853,
        0.9307519092052795,
        0.2215741860219485,
    ),
}


@ways
@pytest.mark.parametrize("key", [0, 2**63 - 1, 1, 2**32])
def test_the_two_are_never_copies_of_each_other(generators, key):
    saved = generators.save()
    generators.seed(key)
    found = random.random(), np.random.rand()
    generators.restore(saved)
    assert found[0] != found[1]


@ways
def test_numbers_of_a_key_are_those_of_every_version(generators):
    # A training that is resumed, or compared with one of before, draws these.
    for key, expected in NUMBERS.items():
        saved = generators.save()
        generators.seed(key)
        found = random.random(), np.random.rand(), random.gauss(0, 1), np.random.randn()
        generators.restore(saved)
        assert found == pytest.approx(expected, rel=1e-14)


def test_where_the_memory_lies_is_looked_up_once(monkeypatch):
    looked_up = []
    look_up = global_generators._numpy_memory
    monkeypatch.setattr(
        global_generators, "_numpy_memory", lambda bits: looked_up.append(bits) or look_up(bits)
    )
    generators = GlobalGenerators()
    for _ in range(3):
        saved = generators.save()
        generators.seed(5)
        generators.restore(saved)
    assert looked_up == [np.random.get_bit_generator()]


class Longer(random.Random):
    """Tells of another state than it has."""

    def getstate(self):
        version, words, following = super().getstate()
        return version, (*words[1:], words[0]), following


def test_what_does_not_lie_as_expected_is_left_to_the_functions(monkeypatch):
    assert global_generators._python_memory(random.Random(1)) is not None
    assert global_generators._python_memory(Longer(1)) is None
    assert global_generators._numpy_memory(np.random.PCG64(1)) is None
    assert global_generators._numpy_memory(np.random.MT19937(1)) is not None
    monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="other"))
    assert global_generators._python_memory(random.Random(1)) is None
    generators = GlobalGenerators()
    assert (generators._words, generators._gauss, generators._key) == (None, None, None)
    assert len(generators.save()) == 3


class Deaf(np.random.RandomState):
    """Keeps the second number of a pair elsewhere."""

    def set_state(self, state):
        pass


class Forgetful(np.random.RandomState):
    """Does not forget that it keeps a number."""

    def set_state(self, state):
        super().set_state(state | {"has_gauss": 1})


@pytest.mark.parametrize("kind", [Deaf, Forgetful])
def test_a_second_number_that_is_not_found_is_left_to_the_functions(monkeypatch, kind):
    assert global_generators._gauss_offset() >= object.__basicsize__
    monkeypatch.setattr(np.random, "RandomState", kind)
    assert global_generators._gauss_offset() is None
