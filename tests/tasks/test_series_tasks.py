"""Time series as tasks: windows, and that no support looks at what a query is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError, DataError, ShapeError
from metatoolkit.tasks import SeriesTasks

# A value tells its series and its time.
SERIES = {name: 100 * place + np.arange(20.0) for place, name in enumerate(("a", "b", "c"))}
SIZES = {"past": 3, "future": 2, "shots": 4, "queries": 3}


def make(series: Any = SERIES, tasks: int = 2, **options: Any) -> SeriesTasks:
    return SeriesTasks(series, **{**SIZES, "tasks": tasks, **options})


def test_windows_follow_each_other_in_one_series_and_supports_come_before_queries() -> None:
    source = make(seed=3)
    moments = set()
    for number in range(300):
        support, query = source.task(number)
        windows = [torch.cat(part, dim=1) for part in (support, query)]
        assert [w.shape for w in windows] == [(4, 5), (3, 5)]
        both = torch.cat(windows)
        assert (both.diff(dim=1) == 1).all() and len(both[:, 0].unique()) == 7
        series = (both // 100).unique().tolist()
        assert series == [list(SERIES).index(source.series_of(number))]
        assert all((part[:, 0].diff() > 0).all() for part in windows)
        last_seen, first_asked = support[1].max(), query[1].min()
        assert last_seen < first_asked
        moments.add((int(last_seen) % 100, int(first_asked) % 100))
    # The earliest and the latest that are possible.
    assert min(moments)[0] == 7 and max(first for _, first in moments) == 16


def test_the_shortest_series_has_one_split() -> None:
    # Begins of supports are 0 to 3; values end at 7, and targets of queries begin at 8, 9 and 10.
    support, query = make([torch.arange(12.0)]).task(5)
    assert support[0][:, 0].tolist() == [0, 1, 2, 3]
    assert query[1].tolist() == [[8, 9], [9, 10], [10, 11]]
    with pytest.raises(DataError, match="series 0 are 11; 12 are needed for 4 support windows"):
        make([torch.arange(11.0)])


def test_series_of_several_variables_keep_them_apart() -> None:
    values = torch.stack((torch.arange(20.0), -torch.arange(20.0)), dim=1)
    (inputs, targets), query = next(make([values, values[:15]]))
    assert inputs.shape == (2, 4, 3, 2) and targets.shape == (2, 4, 2, 2)
    assert torch.equal(inputs[..., 0], -inputs[..., 1]) and query[1].shape == (2, 3, 2, 2)


def test_task_n_depends_on_the_seed_and_on_n_alone_and_a_place_is_found_again() -> None:
    before = torch.get_rng_state()
    batches = make(seed=4)
    first = next(batches)
    assert torch.equal(first[0][0][1], make(seed=4).task(1)[0][0])
    place = batches.state_dict()
    expected = next(batches)
    other = make(seed=0)
    other.load_state_dict(place)
    for one, two in zip(expected, next(other), strict=True):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(first[0][0], next(make(seed=5))[0][0])
    assert torch.equal(before, torch.get_rng_state())
    for wrong in (make({"a": SERIES["a"]}), make(past=2), make(future=1)):
        with pytest.raises(CheckpointError, match="the stored tasks have"):
            wrong.load_state_dict(place)


def test_a_transform_of_support_inputs_leaves_all_else_as_it_is() -> None:
    plain = make().task(1)
    moved = make(support_transform=lambda x, g: x.add_(torch.rand(1, generator=g))).task(1)
    assert (moved[0][0] > plain[0][0]).all() and torch.equal(moved[0][1], plain[0][1])
    assert all(map(torch.equal, plain[1], moved[1]))


@pytest.mark.parametrize(
    ("series", "options", "error", "message"),
    [
        ({}, {}, DataError, "there is no series"),
        ({"a": [1.0] * 9 + [np.nan] * 9}, {}, DataError, r"series 'a' hold 9 .* first nan at \[9"),
        ({"a": SERIES["a"], "b": []}, {}, DataError, "series 'b' are empty"),
        ([np.zeros((20, 1, 1))], {}, ShapeError, "series 0 have shape"),
        (SERIES, {"shots": 20}, DataError, "series 'a' are 20; 28 are needed"),
        (SERIES, {"past": 0}, ConfigurationError, "past is 0"),
        (SERIES, {"future": 0}, ConfigurationError, "future is 0"),
        (SERIES, {"queries": 0}, ConfigurationError, "queries is 0"),
        (SERIES, {"tasks": 0}, ConfigurationError, "tasks is 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    series: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(series, **options)
