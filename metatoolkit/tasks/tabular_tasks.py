"""Batches of regression tasks from a table, each a group of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import DataError, ShapeError, UnknownNameError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.task_arrays import draw_rows, read_values, whose_turn
from metatoolkit.tasks.task_source import Task, TaskSource, augmented, check_integers


class TabularTasks(TaskSource):
    """Regression from a table: a task is a group of rows, some to adapt to and some to be asked.

    The groups take turns in random order, so that as many tasks as there are groups are of each
    of them once. A task draws its rows without replacement, first the support and then the
    query. The same group gives other rows in each of its turns.

    Values are taken as they are. Where inputs are to be standardized, take mean and deviation from
    the groups that are learned from alone.

    Args:
        inputs: Array of shape (rows, ...), such as (rows, columns); (rows,) becomes (rows, 1).
        targets: Array of the same length, of shape (rows, ...); (rows,) becomes (rows, 1).
        groups: The group of each row, of shape (rows,): strings or integers.
        shots: Support examples per task.
        queries: Query examples per task.
        tasks: Tasks per batch.
        seed: Seed of the tasks.
        only: Groups to take, such as those of one split; ``None`` takes all.
        support_transform: Called as ``support_transform(inputs, generator)`` with the support
            inputs of a task, to augment these alone.
        dtype: Type of inputs and targets; ``None`` takes torch's default.

    Attributes:
        groups: Names of the groups, sorted by label.

    Raises:
        ConfigurationError: A number is out of range.
        DataError: Values are missing, not finite or no real numbers, there are none, or a group
            has fewer rows than ``shots + queries``.
        ShapeError: The lengths differ, or ``groups`` has no single dimension.
        UnknownNameError: ``only`` names no group of the table.

    Example:
        >>> heights = torch.rand(60, 2)
        >>> weights = heights.sum(dim=1)
        >>> villages = ["north", "south", "west"] * 20
        >>> tasks = TabularTasks(heights, weights, villages, shots=5, queries=10, tasks=3)
        >>> (inputs, targets), query = next(tasks)
        >>> inputs.shape, targets.shape, query[0].shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5, 1]), torch.Size([3, 10, 2]))
    """

    kept = ("tasks", "shots", "queries", "groups")

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        groups: Any,
        *,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        only: Iterable[Any] | None = None,
        support_transform: Transform | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_integers(1, shots=shots, queries=queries)
        columns = (read_values("inputs", inputs, dtype), read_values("targets", targets, dtype))
        labels = _read_labels(groups)
        lengths = [len(values) for values in (*columns, labels)]
        if len(set(lengths)) > 1:
            raise ShapeError(
                "inputs, targets and groups have {}, {} and {} rows; ".format(*lengths)
                + "one of each for every row is needed."
            )
        self._columns = tuple(c[:, None] if c.dim() == 1 else c for c in columns)
        members = _members(labels, only)
        few = {name: len(rows) for name, rows in members.items() if len(rows) < shots + queries}
        if few:
            told = ", ".join(f"{name!r} ({count} rows)" for name, count in list(few.items())[:3])
            more = f" and {len(few) - 3} others" if len(few) > 3 else ""
            raise DataError(
                f"{told}{more}: fewer than the {shots + queries} rows of shots and queries; lower "
                "these, or name the groups to take by only."
            )
        self.groups = list(members)
        self._rows = list(members.values())
        self.shots, self.queries = shots, queries
        self._support_transform = support_transform
        super().__init__(tasks, seed)

    def group_of(self, number: int) -> str:
        """Return the name of the group of a task.

        Args:
            number: Number of the task, from 0 on.
        """
        return self.groups[whose_turn(self.seed, number, len(self.groups))]

    @override
    def task(self, number: int) -> Task:
        rows = self._rows[whose_turn(self.seed, number, len(self.groups))]
        key = fold_in(self.seed, Stream.TABLE_ROWS, number)
        support, query = (rows[p] for p in draw_rows(len(rows), self.shots, self.queries, key))
        inputs, targets = self._columns
        examples = augmented((inputs[support], targets[support]), self._support_transform, key)
        return examples, (inputs[query], targets[query])


def _read_labels(groups: Any) -> np.ndarray:
    # Lists as objects, since NumPy makes strings of all where one is a string.
    kind = object if isinstance(groups, list | tuple) else None
    given = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups, dtype=kind)
    if given.ndim != 1:
        raise ShapeError(f"groups have shape {given.shape}; (rows,) is needed.")
    if given.dtype.kind == "O" and len({type(label) for label in given}) == 1:
        given = np.array(list(given))
    if given.dtype.kind not in "biuUST":
        raise DataError(
            "groups are neither all strings nor all integers, one for each row, none missing "
            f"(type {given.dtype}); tell the groups by such labels."
        )
    return given


def _members(labels: np.ndarray, only: Iterable[Any] | None) -> dict[str, Tensor]:
    """Return the rows of each group by its name."""
    distinct, place = np.unique(labels, return_inverse=True)
    rows = torch.from_numpy(np.argsort(place, kind="stable"))
    parts = rows.tensor_split(torch.from_numpy(np.bincount(place)).cumsum(0)[:-1])
    members = {str(name): part for name, part in zip(distinct, parts, strict=True)}
    if only is None:
        return members
    wanted = {str(name) for name in ([only] if isinstance(only, str) else only)}
    for name in sorted(wanted):
        if name not in members:
            raise UnknownNameError("group", name, members)
    if not wanted:
        raise DataError("only names no group; None takes all.")
    return {name: part for name, part in members.items() if name in wanted}
