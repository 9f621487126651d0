import math

import pandas
import pytest

from metatoolkit.records.expressions import parse_field
from metatoolkit.records.table import differing, distinguishing, finite, group, labels, settings

from .fakes import fake_run

ACCURACY = parse_field("result.accuracy")


def grouped(runs, *by, over=("seed",)):
    return group(runs, [parse_field(name) for name in by], ACCURACY, over)


def readme():
    """Two settings of one method, five seeds each: 89.8 and 70.6 on average."""
    runs = []
    for rescale, mean in ((True, 89.8), (False, 70.6)):
        for seed, offset in enumerate((-1.0, -0.5, 0.0, 0.5, 1.0)):
            config = {"method": "evograd", "seed": seed, "evograd": {"rescale": rescale}}
            config["checkpoint"] = f"/tmp/{len(runs)}.pt"
            runs.append(fake_run(len(runs), config, result={"accuracy": mean + offset}))
    return runs


def test_configurations_that_differ_are_not_pooled():
    table = grouped(readme(), "config.method")
    names = ["config.method", "config.evograd.rescale"]
    assert list(table.columns) == [*names, "mean", "std", "count", "low95", "high95"]
    found = {row["config.evograd.rescale"]: row for _, row in table.iterrows()}
    for rescale, mean in ((True, 89.8), (False, 70.6)):
        assert math.isclose(found[rescale]["mean"], mean)
        assert math.isclose(found[rescale]["std"], math.sqrt(2.5 / 4))
        assert found[rescale]["count"] == 5
    (note,) = table.attrs["notes"]
    assert "differ in config.evograd.rescale are kept apart" in note


def test_what_is_pooled_on_purpose_is_said():
    table = grouped(readme(), "config.method", over=("seed", "evograd.rescale"))
    (row,) = table.to_dict("records")
    assert row["count"] == 10 and math.isclose(row["mean"], 80.2)
    assert table.attrs["notes"] == ["averaged over config.evograd.rescale (up to 2 values)"]
    assert len(grouped(readme(), "config.method", over=("seed", "config.evograd"))) == 1


def test_what_does_not_change_numbers_keeps_nothing_apart():
    runs = [
        fake_run(n, {"seed": n, "lr": 1 if n else 1.0, "device": "cpu" if n else "cuda", **more},
                 result={"accuracy": n})
        for n, more in enumerate(({}, {"resume": True}, {"new": None}))
    ]  # fmt: skip
    table = grouped(runs, "config.lr")
    assert table[["mean", "count"]].values.tolist() == [[1.0, 3]]
    assert table.attrs["notes"] == []


@pytest.mark.parametrize("other", [{"config": {"seed": 2, "lr": "1"}}, {"experiment": "other"}])
def test_groups_by_something_else_are_of_one_configuration_too(other):
    runs = [fake_run(1, {"seed": 1, "lr": 1}, result={"accuracy": 1.0}, host={"hostname": "h"})]
    more = {"experiment": {"name": other.get("experiment", "fake")}, "host": {"hostname": "h"}}
    config = other.get("config", {"seed": 2, "lr": 1})
    runs.append(fake_run(2, config, result={"accuracy": 3.0}, **more))
    assert grouped(runs, "host")["mean"].tolist() == [1.0, 3.0]
    assert grouped(runs, "config.lr", "experiment")["count"].tolist() == [1, 1]


def test_odd_members_of_a_group_are_named():
    runs = [
        fake_run(n, {"seed": seed, "method": "a"}, result={"accuracy": n}, status=status)
        for n, (seed, status) in enumerate(
            [(1, "COMPLETED"), (1, "COMPLETED"), (2, "INTERRUPTED"), (3, "COMPLETED")]
        )
    ]
    runs.append(fake_run(9, {"seed": 4, "method": "a"}, result={"accuracy": True}))
    table = grouped(runs, "config.method")
    assert table["count"].tolist() == [4]
    assert table.attrs["notes"] == [
        "counted although another run has the same settings and seed: run 1",
        "counted although not completed: run 2",
        "left out, without a number there: run 9",
    ]


def test_groups_of_a_list_and_of_the_text_that_shows_it_are_two():
    runs = [
        fake_run(n, {"seed": 1, "layers": layers}, result={"accuracy": n})
        for n, layers in enumerate(([1, 2], "[1, 2]", [1, 2.0]))
    ]
    assert sorted(grouped(runs, "config.layers")["count"]) == [1, 2]
    assert isinstance(grouped([], "config.layers"), pandas.DataFrame)


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
