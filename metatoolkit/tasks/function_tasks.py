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


def alpine(generator: torch.Generator) -> Function:
    """Draw a shifted Alpine function x ↦ Σ_i abs(x_i sin(x_i + π + s_i) + x_i / 10) of two inputs.

    Each shift s_i = k_i π / 12 is drawn by itself, with k_i from [−5, 5]. The family of A-MAML (Li
    et al. 2023, arXiv 2110.08432), whose public code has the first shift for both inputs.

    Args:
        generator: Where the shifts are drawn from.
    """
    shifts = (10 * torch.rand(2, generator=generator) - 5) * math.pi / 12
    return shifted_alpine(shifts)


def shifted_alpine(shifts: Tensor) -> Function:
    """Return the function of :func:`alpine` with given shifts.

    Args:
        shifts: s, of shape (inputs,).
    """

    def function(inputs: Tensor) -> Tensor:
        waves = inputs * torch.sin(inputs + math.pi + shifts) + inputs / 10
        return waves.abs().sum(dim=1, keepdim=True)

    return function


def cosine_mixture(generator: torch.Generator) -> Function:
    """Draw a mixture x ↦ −c Σ_i cos(f π x_i + p) − Σ_i x_i² of two inputs.

    With c from [0.1, 1], the phase p from [0.5, 2] and the frequency f from [3, 6], as the public
    code of A-MAML (Li et al. 2023, arXiv 2110.08432) has it.

    Args:
        generator: Where the three are drawn from.
    """
    first, second, third = torch.rand(3, generator=generator).tolist()
    return mixed_cosines(0.1 + 0.9 * first, 0.5 + 1.5 * second, 3 + 3 * third)


def mixed_cosines(amplitude: float, phase: float, frequency: float) -> Function:
    """Return the function of :func:`cosine_mixture` with given numbers.

    Args:
        amplitude: c.
        phase: p.
        frequency: f, in half turns.
    """

    def function(inputs: Tensor) -> Tensor:
        waves = torch.cos(frequency * math.pi * inputs + phase)
        return (-amplitude * waves - inputs.square()).sum(dim=1, keepdim=True)

    return function


FAMILIES: dict[str, Family] = {
    "sinusoid": sinusoid,
    "sinusoid_or_line": sinusoid_or_line,
    "alpine": alpine,
    "cosine_mixture": cosine_mixture,
}
"""Families of functions by name."""

INPUTS: dict[str, tuple[int, tuple[float, float]]] = {
    "alpine": (2, (-10.0, 10.0)),
    "cosine_mixture": (2, (-1.0, 1.0)),
}
"""Number of inputs of a family, and the interval of each, where it is not one from −5 to 5."""

_DRAWN_FOR_SCALE = 500


class FunctionTasks(TaskSource):
    """Regression tasks: a function of a family for each, at inputs drawn from an interval.

    Supports and queries are pairs of inputs, of shape (tasks, examples, inputs), and targets, of
    shape (tasks, examples, 1).

    Args:
        family: A name of :data:`FAMILIES`, or a callable that draws a function of inputs of shape
            (examples, inputs) by a generator.
        shots: Support examples per task.
        queries: Query examples per task.
        tasks: Tasks per batch.
        seed: Seed of the functions and inputs.
        interval: Ends of the interval that each input is drawn from, uniformly; ``None`` for that
            of :data:`INPUTS`.
        inputs: Number of inputs; ``None`` likewise.
        standardize: Whether inputs and targets are scaled to zero mean and unit variance over the
            family: inputs by their interval, targets by functions that are drawn for it alone.

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
        interval: tuple[float, float] | None = None,
        inputs: int | None = None,
        standardize: bool = False,
    ) -> None:
        known = INPUTS.get(family) if isinstance(family, str) else None
        usual_inputs, usual_interval = known or (1, (-5.0, 5.0))
        interval = usual_interval if interval is None else interval
        self.inputs = usual_inputs if inputs is None else inputs
        check_integers(1, shots=shots, queries=queries, inputs=self.inputs)
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
        self.scale = self._scale_of_family() if standardize else None

    @override
    def task(self, number: int) -> Task:
        key = fold_in(self.seed, Stream.FUNCTIONS, number)
        inputs, targets = self._examples(
            torch.Generator().manual_seed(key), self.shots + self.queries
        )
        if self.scale is not None:
            low, high = self.interval
            mean, deviation = self.scale
            inputs = (inputs - (low + high) / 2) * math.sqrt(12) / (high - low)
            targets = (targets - mean) / deviation
        first, rest = slice(self.shots), slice(self.shots, None)
        return (inputs[first], targets[first]), (inputs[rest], targets[rest])

    def _examples(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a function that is drawn."""
        function = self.family(generator)
        low, high = self.interval
        inputs = low + (high - low) * torch.rand(count, self.inputs, generator=generator)
        return inputs, function(inputs)

    def _scale_of_family(self) -> tuple[float, float]:
        """Return mean and deviation of the family's targets, the same whatever the seed."""
        generator = torch.Generator().manual_seed(fold_in(0, Stream.FAMILY_SCALE))
        parts = [self._examples(generator, _DRAWN_FOR_SCALE)[1] for _ in range(_DRAWN_FOR_SCALE)]
        targets = torch.cat(parts).double()
        return float(targets.mean()), float(targets.std(correction=0))
