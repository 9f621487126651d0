"""Claims are judged by paired differences and their intervals."""

import math

import numpy as np
import pandas
import pytest
from scipy import stats

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.claims import (
    Claim,
    Difference,
    judge,
    paired_difference,
    verdict,
)


def frame(ours, theirs):
    """Values by seed of two rows."""
    lines = [
        {"row": row, "seed": seed, "score": value}
        for row, values in (("ours", ours), ("theirs", theirs))
        for seed, value in values.items()
    ]
    return pandas.DataFrame(lines, columns=["row", "seed", "score"])


def difference(ours, theirs, **options):
    return paired_difference(frame(ours, theirs), "ours", "theirs", "score", **options)


def test_differences_are_taken_seed_by_seed():
    """The rows vary by tens, their differences by tenths."""
    generator = np.random.default_rng(0)
    common = dict(enumerate(10 * generator.standard_normal(6)))
    ours = {seed: value + 1 + 0.1 * seed for seed, value in common.items()}
    # In another order, and with seeds of their own.
    found = difference({99: 0.0, **dict(reversed(ours.items()))}, {**common, 77: 5.0})
    expected = stats.ttest_rel(list(ours.values()), list(common.values()))
    low, high = expected.confidence_interval(0.95)
    assert found.pairs == 6 and found.mean == pytest.approx(1.25)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.told(2) == f"+1.25, 95 % interval {low:+.2f} to {high:+.2f}, 6 seeds"


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        found = difference(
            dict(enumerate(generator.standard_normal(5))), dict.fromkeys(range(5), 0.0)
        )
        held += found.low < 0 < found.high
    assert 0.93 < held / 1000 < 0.97


def test_one_pair_decides_nothing_and_none_says_nothing():
    one = difference({1: 5.0, 2: math.nan}, {1: 1.0, 2: 1.0})
    assert one.pairs == 1 and one.told(1) == "+4.0, one seed"
    assert verdict(Claim("ours", "above", "theirs", "score"), one) == "undecided"
    assert difference({1: 5.0}, {2: 1.0}) is None
    claims = [Claim("ours", "above", "theirs", "score")]
    assert judge(claims, frame({1: 5.0}, {2: 1.0}), {"score": 1}) == []
    exact = difference({1: 5.0}, {1: 1.0}, exact=True)
    assert exact.told(1) == "+4.0" and verdict(claims[0], exact) == "holds"


@pytest.mark.parametrize(
    ("kind", "margin", "low", "high", "expected"),
    [
        ("above", None, 0.1, 2, "holds"),
        ("above", None, -0.1, 2, "undecided"),
        ("above", None, -2, -0.1, "does not hold"),
        ("above", None, 0, 0, "does not hold"),
        ("below", None, -2, -0.1, "holds"),
        ("below", None, -2, 0.1, "undecided"),
        ("below", None, 0.1, 2, "does not hold"),
        ("level", 1.0, -0.9, 0.9, "holds"),
        ("level", 1.0, -0.9, 1.1, "undecided"),
        ("level", 1.0, -1.1, 0.9, "undecided"),
        ("level", 1.0, -3, 3, "undecided"),
        ("level", 1.0, 1.1, 3, "does not hold"),
        ("level", 1.0, -3, -1.1, "does not hold"),
        ("level", 1.0, 0.5, 0.9, "holds"),
    ],
)
def test_the_whole_interval_decides(kind, margin, low, high, expected):
    claim = Claim("ours", kind, "theirs", "score", margin)
    assert verdict(claim, Difference((low + high) / 2, low, high, 5)) == expected


def test_sentences():
    ours, theirs = {1: 2.0, 2: 3.0, 3: 4.0}, {1: 1.0, 2: 2.0, 3: 2.9}
    claims = [
        Claim("ours", "above", "theirs", "score"),
        Claim("ours", "level", "theirs", "score", margin=0.5),
    ]
    half = stats.t.ppf(0.975, 2) * np.std([1, 1, 1.1], ddof=1) / math.sqrt(3)
    mean = 3.1 / 3
    low, high = mean - half, mean + half
    told = f"({mean:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, 3 seeds)"
    assert judge(claims, frame(ours, theirs), {"score": 2}) == [
        f"ours above theirs in score: holds {told}",
        f"ours level (within 0.50) with theirs in score: does not hold {told}",
    ]


@pytest.mark.parametrize(
    ("kind", "margin"), [("level", None), ("level", 0.0), ("level", -1.0), ("above", 1.0)]
)
def test_a_margin_is_stated_where_it_means_something(kind, margin):
    with pytest.raises(ConfigurationError, match="margin="):
        Claim("ours", kind, "theirs", "score", margin)
