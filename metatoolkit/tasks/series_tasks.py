"""Batches of forecasting tasks, each a time series: windows of the past and what comes next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.task_arrays import read_values, whose_turn
from metatoolkit.tasks.task_source import Task, TaskSource, augmented, check_integers


class SeriesTasks(TaskSource):
    """Forecasting: a task is a time series, learned from its past and asked what came later.

    An example is a window: ``past`` values in a row are its input and the ``future`` values after
    them its target. A task draws a moment of its series. All values of support windows, targets
    included, come before that moment; all targets of queries come at or after it, while
    inputs of queries, which are known by then, may reach back. Windows are drawn without
    replacement and are in the order of time. The series take turns in random order.

    Values are taken as they are: bring series to one scale before, by means that look at no later
    values, such as differences of logarithms. Two sources that shall share no data need
    different series.

    Args:
        series: Series by name, or one after the other: each of shape (times,) or
            (times, variables), in order of time at equal distances; lengths may differ.
        past: Values of an input.
        future: Values of a target.
        shots: Support windows per task.
        queries: Query windows per task.
        tasks: Tasks per batch.
        seed: Seed of the tasks.
        support_transform: Called as ``support_transform(inputs, generator)`` with the support
            inputs of a task, to augment these alone.
        dtype: Type of the values; ``None`` takes torch's default.

    Attributes:
        names: Names of the series.

    Raises:
        ConfigurationError: A number is out of range.
        DataError: There is no series, one has too few values or some that are missing, not finite
            or no real numbers; it is named.
        ShapeError: A series has other dimensions.

    Example:
        >>> waves = {f"{p} days": torch.sin(torch.arange(50.0) / p) for p in (2, 3, 5)}
        >>> tasks = SeriesTasks(waves, past=6, shots=10, queries=5, tasks=3)
        >>> (inputs, targets), query = next(tasks)
        >>> inputs.shape, targets.shape, query[0].shape
        (torch.Size([3, 10, 6]), torch.Size([3, 10, 1]), torch.Size([3, 5, 6]))
    """

    kept = ("tasks", "past", "future", "shots", "queries", "names")

    def __init__(
        self,
        series: Mapping[str, Any] | Iterable[Any],
        *,
        past: int,
        future: int = 1,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        support_transform: Transform | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_integers(1, past=past, future=future, shots=shots, queries=queries)
        given = dict(series) if isinstance(series, Mapping) else dict(enumerate(series))
        if not given:
            raise DataError("there is no series; at least one is needed.")
        self.past, self.future, self.shots, self.queries = past, future, shots, queries
        self.names = [str(name) for name in given]
        self._series = [
            self._checked(f"the values of series {name!r}", values, dtype)
            for name, values in given.items()
        ]
        self._support_transform = support_transform
        super().__init__(tasks, seed)

    def series_of(self, number: int) -> str:
        """Return the name of the series of a task.

        Args:
            number: Number of the task, from 0 on.
        """
        return self.names[whose_turn(self.seed, number, len(self.names))]

    @override
    def task(self, number: int) -> Task:
        series = self._series[whose_turn(self.seed, number, len(self.names))]
        key = fold_in(self.seed, Stream.SERIES_WINDOWS, number)
        generator = torch.Generator().manual_seed(key)

        def draw(low: int, high: int, count: int) -> Tensor:
            return low + torch.randperm(high - low, generator=generator)[:count].sort().values

        width = self.past + self.future
        first, last = self._moments(len(series))
        moment = int(torch.randint(first, last + 1, (), generator=generator))
        support = self._windows(series, draw(0, moment - width + 1, self.shots))
        begins = draw(moment - self.past, len(series) - width + 1, self.queries)
        examples = augmented(support, self._support_transform, key)
        return examples, self._windows(series, begins)

    def _windows(self, series: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the windows that begin at some times."""
        inputs, targets = torch.arange(self.past), self.past + torch.arange(self.future)
        return series[begins[:, None] + inputs], series[begins[:, None] + targets]

    def _moments(self, length: int) -> tuple[int, int]:
        """Return the first and the last moment with windows enough before and after it."""
        before = self.past + self.future + self.shots - 1
        return before, length - self.future - self.queries + 1

    def _checked(self, name: str, values: Any, dtype: torch.dtype | None) -> Tensor:
        read = read_values(name, values, dtype)
        if read.dim() > 2:
            raise ShapeError(
                f"{name} have shape {tuple(read.shape)}; (times,) or (times, variables) is needed."
            )
        first, last = self._moments(len(read))
        if last < first:
            raise DataError(
                f"{name} are {len(read)}; {len(read) + first - last} are needed for {self.shots} "
                f"support windows of {self.past} + {self.future} values and {self.queries} later "
                "queries. Lower these, or leave the series out."
            )
        return read
