import math

import pytest

from metatoolkit.records.table import differing, distinguishing, finite, labels, settings

from .fakes import fake_run


def test_bookkeeping_is_no_setting():
    config = {"lr": 0.1, "checkpoint": "/a", "device": "cuda", "net": {"width": 3, "depth": 2}}
    run = fake_run(1, config)
    assert settings(run) == {"config.lr": 0.1, "config.net.width": 3, "config.net.depth": 2}
    assert settings(run, ["config.net", "lr"]) == {}
    assert settings(run, ["net.width"]) == {"config.lr": 0.1, "config.net.depth": 2}


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (1, 1.0, False),
        (1, True, True),
        (1, "1", True),
        (math.nan, math.nan, False),
        ([1], [1.0], False),
        ([1], "[1]", True),
        ({}, None, True),
    ],
)
def test_equal_values_do_not_differ(one, other, differ):
    assert bool(differing([{"x": one}, {"x": other}])) == differ
    assert bool(differing([{}, {"x": None}])) is False


def test_the_shortest_set_that_tells_apart_is_found():
    configs = [
        {"method": m, "seed": s, "long.name": n, "b": n}
        for m, s, n in [("p", 1, 0), ("p", 1, 1), ("e", 1, 0), ("e", 1, 1)]
    ]
    assert distinguishing(configs) == ["method", "b"]
    assert distinguishing(configs, ["p", "p", "e", "e"]) == ["b"]
    assert distinguishing(configs[:1]) == []
    # Three entries are needed, one more than is tried in every combination.
    bits = [{"a": i & 1, "b": i & 2, "c": i & 4, "d": 7} for i in range(8)]
    assert sorted(distinguishing(bits)) == ["a", "b", "c"]


def test_labels_say_no_more_than_they_must():
    configs = [{"config.m": "plain", "config.r": True}]
    configs += [{"config.m": "evo", "config.r": rescale} for rescale in (True, None, "x" * 90)]
    told = labels(configs, ["config.m", "config.r"])
    assert told[:3] == ["m=plain", "m=evo, r=true", "m=evo, r=none"]
    assert len(told[3]) < 40 and "…" in told[3]
    assert labels(configs[:1], []) == [""]


def test_what_can_be_averaged():
    assert [finite(one) for one in (1, 0.5, math.nan, math.inf, True, "1", None)] == [
        True, True, False, False, False, False, False
    ]  # fmt: skip
