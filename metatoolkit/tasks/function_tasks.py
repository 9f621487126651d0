"""Batches of regression tasks, each a function of a family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.task_source import Task, TaskSource, check_integers

Function = Callable[[Tensor], Tensor]
Family = Callable[[torch.Generator], Function]


def sinusoid(generator: torch.Generator) -> Function:
    """Draw a sinusoid x ↦ a sin(x − p) with a from [0.1, 5] and p from [0, π].

    The family of Finn et al. 2017, arXiv 1703.03400, section 5.1.

    Args:
        generator: Where amplitude and phase are drawn from.
    """
    first, second = torch.rand(2, generator=generator).tolist()
    amplitude, phase = 0.1 + 4.9 * first, math.pi * second
    return lambda inputs: amplitude * torch.sin(inputs - phase)


def sinusoid_or_line(generator: torch.Generator) -> Function:
    """Draw a sinusoid, or with probability one half a line of slope and offset in [−3, 3].

    The family of Finn et al. 2018, arXiv 1806.02817, section 5, without its noise.

    Args:
        generator: Where the function is drawn from.
    """
    is_line, slope, offset = torch.rand(3, generator=generator).tolist()
    if is_line < 0.5:
        return lambda inputs: (6 * slope - 3) * inputs + (6 * offset - 3)
    return sinusoid(generator)


FAMILIES: dict[str, Family] = {"sinusoid": sinusoid, "sinusoid_or_line": sinusoid_or_line}
"""Families of functions by name."""


class FunctionTasks(TaskSource):
    """Regression tasks: a function of a family for each, at inputs drawn from an interval.

    Supports and queries are pairs of inputs and targets, both of shape (tasks, examples, 1).

    Args:
        family: A name of :data:`FAMILIES`, or a callable that draws a function of inputs of shape
            (examples, 1) by a generator.
        shots: Support examples per task.
        queries: Query examples per task.
        tasks: Tasks per batch.
        seed: Seed of the functions and inputs.
        interval: Ends of the interval that inputs are drawn from, uniformly.

    Raises:
        ConfigurationError: A number is out of range, or the interval is empty.
        UnknownNameError: There is no such family.

    Example:
        >>> tasks = FunctionTasks("sinusoid", shots=5, queries=10, tasks=4)
        >>> (inputs, targets), query = next(tasks)
        >>> inputs.shape, query[1].shape
        (torch.Size([4, 5, 1]), torch.Size([4, 10, 1]))
    """

    kept = ("tasks", "shots", "queries", "interval", "family_name")

    def __init__(
        self,
        family: str | Family = "sinusoid",
        *,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        interval: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        check_integers(1, shots=shots, queries=queries)
        low, high = interval
        if not -math.inf < low < high < math.inf:
            raise ConfigurationError(
                f"interval is {interval!r}; two finite numbers are needed, the first smaller."
            )
        if isinstance(family, str) and family not in FAMILIES:
            raise UnknownNameError("family of functions", family, FAMILIES)
        self.family: Family = FAMILIES[family] if isinstance(family, str) else family
        self.family_name = getattr(self.family, "__qualname__", type(self.family).__qualname__)
        self.shots, self.queries = shots, queries
        self.interval = (float(low), float(high))
        super().__init__(tasks, seed)

    @override
    def task(self, number: int) -> Task:
        key = fold_in(self.seed, Stream.FUNCTIONS, number)
        generator = torch.Generator().manual_seed(key)
        function = self.family(generator)
        low, high = self.interval
        count = self.shots + self.queries
        inputs = low + (high - low) * torch.rand(count, 1, generator=generator)
        targets = function(inputs)
        first, rest = slice(self.shots), slice(self.shots, None)
        return (inputs[first], targets[first]), (inputs[rest], targets[rest])
