"""Batches of tasks from several sources together."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.padding import pad_tasks
from metatoolkit.tasks.task_source import Task, TaskSource, check_integers


class MixedTasks(TaskSource):
    """Tasks of several sources, each drawn from one of them at random.

    Task n is task n of the source that is drawn for it, under a seed that follows from that of the
    mixture and the place of the source in it. Tasks must be alike in shapes and types, whichever
    source they are from, unless they are padded, which lets their shots and queries differ. The
    sources stay where they are, and may serve other mixtures, too.

    Args:
        sources: Sources by name, or one after the other.
        tasks: Tasks per batch.
        weights: How often each source is drawn, as a share of the sum, in the order of the
            sources; ``None`` draws them equally often.
        seed: Seed of the draws and of the sources.
        padded: Whether the examples of a batch are filled up to the most that one of its tasks has,
            with a mask as the last tensor of support and query, as by :func:`pad_tasks`.

    Raises:
        ConfigurationError: There is no source, one of them is no :class:`TaskSource` or is there
            twice, or weights are not as many positive numbers.

    Example:
        >>> import torch
        >>> from metatoolkit.tasks import FunctionTasks
        >>> def lines(generator):
        ...     slope = torch.randn(1, generator=generator)
        ...     return lambda inputs: slope * inputs
        >>> sizes = {"shots": 5, "queries": 10, "tasks": 1}
        >>> sources = {"lines": FunctionTasks(lines, **sizes), "waves": FunctionTasks(**sizes)}
        >>> tasks = MixedTasks(sources, tasks=4, weights=[1, 3], seed=5)
        >>> (inputs, targets), query = next(tasks)
        >>> inputs.shape, [tasks.source_of(number) for number in range(4)]
        (torch.Size([4, 5, 1]), ['waves', 'waves', 'waves', 'lines'])
    """

    kept = ("tasks", "weights", "padded")

    def __init__(
        self,
        sources: Mapping[str, TaskSource] | Iterable[TaskSource],
        *,
        tasks: int,
        weights: Iterable[float] | None = None,
        seed: int = 0,
        padded: bool = False,
    ) -> None:
        given = dict(sources) if isinstance(sources, Mapping) else dict(enumerate(sources))
        self.names = [str(name) for name in given]
        self.sources: list[TaskSource] = list(given.values())
        for name, source in given.items():
            if not isinstance(source, TaskSource):
                raise ConfigurationError(
                    f"source {name!r} is a {type(source).__name__}; a TaskSource is needed, such "
                    "as FewShotTasks, FunctionTasks or TabularTasks."
                )
        if not given or len({id(source) for source in self.sources}) < len(given):
            fault = "a source is there twice" if given else "there is no source"
            raise ConfigurationError(f"{fault}; give different ones, and weights to draw one more.")
        self.weights = [1.0] * len(given) if weights is None else [float(w) for w in weights]
        positive = all(0 < weight < math.inf for weight in self.weights)
        if len(self.weights) != len(given) or not positive:
            raise ConfigurationError(
                f"weights are {self.weights}; {len(given)} positive numbers are needed, one for "
                "each source."
            )
        self.padded = padded
        super().__init__(tasks, seed)

    @override
    def batch(self, first: int, count: int) -> Task:
        """Return any tasks as one batch; see :meth:`TaskSource.batch`."""
        if not self.padded:
            return super().batch(first, count)
        check_integers(1, count=count)
        return pad_tasks([self.task(first + number) for number in range(count)])

    def source_of(self, number: int) -> str:
        """Return the name of the source of a task.

        Args:
            number: Number of the task, from 0 on.
        """
        return self.names[self._drawn(number)]

    @override
    def task(self, number: int) -> Task:
        place = self._drawn(number)
        source = self.sources[place]
        before = source._place()
        source.reseed(fold_in(self.seed, Stream.MIXED_SEEDS, place))
        try:
            return source.task(number)
        finally:
            source._go_to(before)

    def _drawn(self, number: int) -> int:
        draw = random.Random(fold_in(self.seed, Stream.MIXED_SOURCES, number))
        return draw.choices(range(len(self.sources)), self.weights)[0]

    @override
    def _told(self, number: int) -> str:
        return f"task {number}, of source {self.source_of(number)!r},"

    @override
    def _kept(self) -> dict[str, Any]:
        parts = dict(zip(self.names, (source._kept() for source in self.sources), strict=True))
        return {**super()._kept(), "sources": parts}
