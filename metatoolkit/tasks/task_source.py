"""What sources of batches of tasks have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.resumable import ResumableBatches

Examples = tuple[Tensor, ...]
Task = tuple[Examples, Examples]


class TaskSource(ResumableBatches[Task]):
    """An endless iterator over batches of tasks, whose place can be stored and found again.

    A batch is what ``MetaTrainer(tasks=...)`` and ``mt.over_tasks`` take: a tuple
    ``(support, query)``, each a tuple of tensors, for instance inputs and targets, with a leading
    dimension of tasks. Batch i holds the tasks of numbers ``i * tasks`` to
    ``(i + 1) * tasks - 1``. A subclass says in :meth:`task` what task n is, which depends on the
    seed and on n alone.

    Args:
        tasks: Tasks per batch.
        seed: Seed of the tasks.

    Raises:
        ConfigurationError: ``tasks`` is no integer from 1 on.
    """

    kept: ClassVar[tuple[str, ...]] = ("tasks",)
    counters: ClassVar[tuple[str, ...]] = ("next_task",)
    noun = "tasks"

    def __init__(self, tasks: int, seed: int = 0) -> None:
        check_integers(1, tasks=tasks)
        self.tasks = tasks
        self.next_task = 0
        self.reseed(seed)

    @abstractmethod
    def task(self, number: int) -> Task:
        """Return the support and the query examples of one task.

        Args:
            number: Number of the task, from 0 on.

        Returns:
            Two tuples of tensors, of shape (examples, ...), alike in all tasks.
        """

    @override
    def __next__(self) -> Task:
        """Return the next batch."""
        batch = self.batch(self.next_task, self.tasks)
        self.next_task += self.tasks
        return batch

    def batch(self, first: int, count: int) -> Task:
        """Return any tasks that follow each other as one batch, wherever this iterator is.

        Args:
            first: Number of the first task.
            count: Number of tasks.

        Raises:
            ConfigurationError: ``count`` is no integer from 1 on.
            ShapeError: Tasks differ in shapes or types; the first that does is named.
        """
        check_integers(1, count=count)
        tasks = [self.task(first + n) for n in range(count)]
        for number, task in enumerate(tasks):
            mine, other = (" and ".join(map(told, pair)) for pair in (task, tasks[0]))
            if mine != other:
                raise ShapeError(
                    f"{self._told(first + number)} has tensors of shapes {mine}, and "
                    f"{self._told(first)} {other}; the tasks of a batch must be alike: resize, cut "
                    "or convert what they hold, pad them (MixedTasks(..., padded=True), "
                    "pad_tasks), or give them as a list."
                )
        support, query = zip(*tasks, strict=True)
        return _stacked(support), _stacked(query)

    def _told(self, number: int) -> str:
        """Return what a task is called in messages."""
        return f"task {number}"


def check_integers(least: int, **numbers: Any) -> None:
    """Raise unless all numbers are integers that are large enough.

    Args:
        least: The smallest that is accepted.
        **numbers: The numbers by name.

    Raises:
        ConfigurationError: One is not.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ConfigurationError(f"{name} is {number!r}; an integer from {least} on is needed.")


def augmented(support: Examples, transform: Transform | None, key: int) -> Examples:
    """Return a support set whose first tensor, the inputs, went through a transform.

    Args:
        support: Support examples of a task.
        transform: Called as ``transform(inputs, generator)``; ``None`` changes nothing.
        key: Random key of the task, from which the generator has a stream of its own.
    """
    if transform is None:
        return support
    inputs, *others = support
    generator = torch.Generator().manual_seed(fold_in(key, Stream.SUPPORT_TRANSFORM))
    return transform(inputs, generator), *others


def told(part: Examples) -> str:
    """Return shapes and types of tensors, for messages.

    Args:
        part: The tensors.
    """
    return ", ".join(f"{tuple(t.shape)} ({str(t.dtype).removeprefix('torch.')})" for t in part)


def _stacked(parts: tuple[Examples, ...]) -> Examples:
    return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))
