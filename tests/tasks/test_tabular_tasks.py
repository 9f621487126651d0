"""Groups of a table's rows as tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    ShapeError,
    UnknownNameError,
)
from metatoolkit.tasks import TabularTasks

# Row i has the inputs (i, its group) and the target 10 i.
GROUPS = np.array([3, 1, 2, 1, 3] * 6)
INPUTS = np.stack((np.arange(30.0), GROUPS), axis=1)
TARGETS = 10 * np.arange(30.0)


def make(tasks: int = 3, **options: Any) -> TabularTasks:
    table = {"inputs": INPUTS, "targets": TARGETS, "groups": GROUPS}
    return TabularTasks(**{**table, "shots": 2, "queries": 3, "tasks": tasks, **options})


def test_a_task_is_rows_of_one_group_each_once() -> None:
    source = make(seed=2)
    drawn = set()
    for number in range(12):
        support, query = source.task(number)
        assert [len(part) for part in (*support, *query)] == [2, 2, 3, 3]
        inputs, targets = (torch.cat(parts) for parts in zip(support, query, strict=True))
        assert targets.shape == (5, 1) and torch.equal(targets[:, 0], 10 * inputs[:, 0])
        assert len(inputs[:, 0].unique()) == 5
        assert inputs[:, 1].unique().tolist() == [float(source.group_of(number))]
        drawn.add(tuple(inputs[:, 0].tolist()))
    assert len(drawn) == 12 and inputs.dtype == torch.float32


def test_the_groups_take_turns_in_random_order() -> None:
    source = make(seed=1)
    turns = [[source.group_of(n) for n in range(first, first + 3)] for first in range(0, 30, 3)]
    assert all(sorted(turn) == ["1", "2", "3"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 2


def test_every_row_is_in_supports_and_in_queries() -> None:
    """With as many rows as a group has, over its turns each row is in either."""
    source = make(only=[2], shots=2, queries=4)
    tasks = [source.task(number) for number in range(40)]
    for part in (0, 1):
        seen = {float(row) for task in tasks for row in task[part][0][:, 0]}
        assert seen == {2.0, 7.0, 12.0, 17.0, 22.0, 27.0}


def test_task_n_depends_on_the_seed_and_on_n_alone_and_a_place_is_found_again() -> None:
    before = torch.get_rng_state()
    batches = make(seed=4)
    first = next(batches)
    assert torch.equal(first[0][0][2], make(seed=4).task(2)[0][0])
    place = batches.state_dict()
    expected = next(batches)
    other = make(seed=0)
    other.load_state_dict(place)
    for one, two in zip(expected, next(other), strict=True):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(first[0][0], next(make(seed=5))[0][0])
    assert torch.equal(before, torch.get_rng_state())
    for wrong in (make(only=[1, 3]), make(shots=1), make(queries=1)):
        with pytest.raises(CheckpointError, match="the stored tasks have"):
            wrong.load_state_dict(place)


def test_a_transform_of_support_inputs_leaves_all_else_as_it_is() -> None:
    def shifted(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs.add_(torch.rand(1, generator=generator))

    plain, moved = make(), make(support_transform=shifted)
    shifts = set()
    for number in range(4):
        (inputs, targets), query = plain.task(number)
        (own, own_targets), own_query = moved.task(number)
        assert torch.equal(targets, own_targets) and all(map(torch.equal, query, own_query))
        shifts.add(round(float((own - inputs).mean()), 6))
    assert len(shifts) == 4 and 0 not in shifts
    assert INPUTS[0, 0] == 0


@pytest.mark.parametrize(
    "groups", [list("cabac" * 6), np.array(list("cabac" * 6), dtype=object), torch.tensor(GROUPS)]
)
def test_groups_may_be_strings_integers_and_tensors(groups: Any) -> None:
    source = make(groups=groups, dtype=torch.float64)
    assert source.groups in (["a", "b", "c"], ["1", "2", "3"])
    for number in range(3):
        mine, numbered = source.task(number), make(dtype=torch.float64).task(number)
        assert torch.equal(mine[1][0], numbered[1][0]) and mine[0][0].dtype == torch.float64


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_outputs_of_another_width_are_told_with_the_task(batching: Any) -> None:
    loss = mt.losses.squared_error
    maml = mt.algorithms.build("maml", torch.nn.Linear(2, 3), loss, loss, lr=1e-4, steps=1)
    with pytest.raises(ShapeError, match=r"returned \(2, 3\) for targets of .*\(2, 1\)") as caught:
        mt.over_tasks(maml.problem, maml.inner, maml.estimator, next(make()), batching)
    assert caught.value.__notes__ == ["in task 0 of the batch"]


def changed(values: np.ndarray, place: Any, value: float) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": TARGETS[:-1]}, ShapeError, "30, 29 and 30 rows"),
        ({"groups": GROUPS[1:]}, ShapeError, "30, 30 and 29 rows"),
        ({"groups": GROUPS[:, None]}, ShapeError, r"groups have shape \(30, 1\)"),
        ({"shots": 5}, DataError, r"'2' \(6 rows\): fewer than the 8 rows"),
        ({"shots": 10}, DataError, r"'1' \(12 rows\), '2' \(6 rows\), '3' \(12 rows\): fewer"),
        ({"inputs": changed(INPUTS, (4, 1), np.nan)}, DataError, r"inputs hold 1 .*nan at \[4, 1"),
        ({"targets": changed(TARGETS, 7, np.inf)}, DataError, r"targets hold .*inf at \[7\]"),
        ({"targets": changed(TARGETS, 7, 1e39)}, DataError, "not finite in float32, first 1e"),
        ({"inputs": np.array(["a"] * 30)}, DataError, "inputs are no array of real numbers"),
        ({"inputs": [[1.0], [1.0, 2.0]]}, DataError, "inputs are no array of real numbers"),
        ({"inputs": INPUTS + 0j}, DataError, "they are complex"),
        ({"inputs": np.empty((0, 2))}, DataError, r"inputs are empty, of shape \(0, 2\)"),
        ({"inputs": 1.0}, ShapeError, "inputs are a single number"),
        ({"dtype": torch.int64}, ConfigurationError, "dtype is torch.int64"),
        ({"groups": ["a", None] * 15}, DataError, "groups are neither"),
        ({"groups": ["a", float("nan")] * 15}, DataError, "groups are neither"),
        ({"groups": TARGETS}, DataError, "groups are neither"),
        ({"only": ["4"]}, UnknownNameError, "unknown group '4'.*Accepted: 1, 2, 3"),
        ({"only": []}, DataError, "only names no group"),
        ({"shots": 0}, ConfigurationError, "shots is 0"),
        ({"queries": 0}, ConfigurationError, "queries is 0"),
        ({"tasks": 0}, ConfigurationError, "tasks is 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)
