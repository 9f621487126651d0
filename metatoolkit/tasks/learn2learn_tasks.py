"""Batches of tasks from a taskset of learn2learn."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, DataError, brief
from metatoolkit.randomness import Stream, fold_in, seeded
from metatoolkit.state import describe
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.task_source import (
    Examples,
    Task,
    TaskSource,
    augmented,
    check_integers,
)


class TasksetTasks(TaskSource):
    """The tasks of a learn2learn taskset; see :func:`from_learn2learn`.

    Args:
        taskset: A ``learn2learn.data.Taskset``.
        shots: Support examples per class.
        tasks: Tasks per batch.
        seed: Seed of the tasks.
        support_transform: Transform of the support inputs alone.

    Raises:
        ConfigurationError: It is no such taskset, or a number is out of range.
    """

    kept = ("tasks", "shots", "total")

    def __init__(
        self,
        taskset: Any,
        shots: int,
        tasks: int,
        seed: int = 0,
        support_transform: Transform | None = None,
    ) -> None:
        if not all(hasattr(taskset, name) for name in ("sample_task_description", "get_task")):
            raise ConfigurationError(
                f"taskset is a {type(taskset).__name__}; a learn2learn.data.Taskset is needed, "
                "such as tasksets.train of learn2learn.vision.benchmarks.get_tasksets."
            )
        check_integers(1, shots=shots)
        self._taskset = taskset
        self._support_transform = support_transform
        self.shots = shots
        self.total = int(taskset.num_tasks)
        super().__init__(tasks, seed)

    @override
    def task(self, number: int) -> Task:
        # A finite taskset repeats its tasks, of which each is described by its place alone.
        place = number
        if self.total > 0:
            draw = random.Random(fold_in(self.seed, Stream.TASKSET_PLACES, number))
            place = draw.randrange(self.total)
        with (
            _told(number, "drawn", "lower n of NWays or k of KShots, if the data have fewer"),
            seeded(fold_in(self.seed, Stream.TASKSET_TASKS, place), []),
        ):
            description = self._taskset.sample_task_description()
        key = fold_in(self.seed, Stream.TASKSET_DATA, number)
        with (
            _told(number, "loaded", "get the data again, or leave out what is broken"),
            seeded(key, []),
        ):
            loaded = self._taskset.get_task(description)
        support, query = self._split(loaded, number)
        return augmented(support, self._support_transform, key), query

    def _split(self, loaded: Any, number: int) -> Task:
        pair = isinstance(loaded, tuple | list) and len(loaded) == 2
        if not pair or not all(isinstance(part, Tensor) for part in loaded):
            raise DataError(
                f"task {number} of the taskset is {describe(loaded)}; a pair of tensors, inputs "
                "and labels, is needed: have the data set return tensors and LoadData among the "
                "transforms."
            )
        inputs, labels = loaded
        in_support = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            places = (labels == label).nonzero()[:, 0]
            if len(places) <= self.shots:
                raise DataError(
                    f"task {number} of the taskset has {len(places)} examples of class "
                    f"{int(label)}; {self.shots} shots leave none as a query. Load more by KShots, "
                    "or lower shots."
                )
            in_support[places[: self.shots]] = True

        def part(chosen: Tensor) -> Examples:
            return inputs[chosen], labels[chosen]

        return part(in_support), part(~in_support)


@contextlib.contextmanager
def _told(number: int, done: str, remedy: str) -> Iterator[None]:
    """Say of which task an error of a data set or of learn2learn's transforms is."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"task {number} of the taskset cannot be {done} ({brief(error)}); {remedy}."
        ) from error


def from_learn2learn(
    taskset: Any,
    *,
    shots: int,
    tasks: int,
    seed: int = 0,
    support_transform: Transform | None = None,
) -> TasksetTasks:
    """Return batches of the tasks that a learn2learn taskset samples.

    A task is what ``taskset.sample()`` returns, inputs and labels. Of each of its classes the first
    ``shots`` examples are the support set, the others queries; learn2learn draws them in random
    order. Its transforms draw from Python's global random state, which is seeded for each task and
    restored. What the taskset has stored of former samples is neither read nor changed.

    Args:
        taskset: A ``learn2learn.data.Taskset``, whose tasks have ``RemapLabels`` or labels from 0
            on as the network needs them.
        shots: Support examples per class.
        tasks: Tasks per batch.
        seed: Seed of the tasks.
        support_transform: Called as ``support_transform(inputs, generator)`` with the support
            inputs of a task, to augment these alone.

    Returns:
        An endless, resumable iterator: supports and queries are pairs of inputs, of shape
        (tasks, examples, ...), and labels, of shape (tasks, examples).

    Raises:
        ConfigurationError: It is no such taskset, or a number is out of range.
        DataError: From a batch: a task cannot be drawn, for want of classes or examples, or not be
            loaded, or is no pair of tensors; it is named.

    Example:
        >>> import metatoolkit as mt
        >>> from metatoolkit.tasks.learn2learn_import import import_learn2learn
        >>> data = import_learn2learn("this example").data
        >>> points = torch.utils.data.TensorDataset(torch.randn(60, 4), torch.arange(60) % 6)
        >>> points = data.MetaDataset(points)
        >>> transforms = [
        ...     data.transforms.NWays(points, n=3),
        ...     data.transforms.KShots(points, k=5),
        ...     data.transforms.LoadData(points),
        ...     data.transforms.RemapLabels(points),
        ... ]
        >>> batches = from_learn2learn(data.Taskset(points, transforms), shots=2, tasks=8)
        >>> (inputs, labels), query = next(batches)
        >>> inputs.shape, query[0].shape
        (torch.Size([8, 6, 4]), torch.Size([8, 9, 4]))
    """
    return TasksetTasks(taskset, shots, tasks, seed, support_transform)
