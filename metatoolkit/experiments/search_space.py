"""Search spaces: which settings may be chosen, as points of a unit cube."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import Job, Outcome, configuration_of
from metatoolkit.experiments.words import nested
from metatoolkit.records.fields import flatten


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
        low: Lower bound.
        high: Upper bound, above the lower one.
        log: Whether equal distances are equal ratios; the bounds must then be positive.
        integer: Whether the numbers are integers.
        digits: Digits that count of each number; ``None`` for all.

    Example:
        >>> Range(1e-3, 1e-1, log=True).at(0.5)
        0.01
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    digits: int | None = 2

    def at(self, position: float) -> float:
        """Return the number at a position from 0 to 1.

        Args:
            position: The position.
        """
        if self.integer:
            # Each integer has as long a part of the range as the others on its scale.
            near = math.floor(self._between(self.low - 0.5, self.high + 0.5, position) + 0.5)
            return min(max(near, int(self.low)), int(self.high))
        number = self._between(self.low, self.high, position)
        return number if self.digits is None else rounded(number, self.digits)

    def _between(self, low: float, high: float, position: float) -> float:
        if self.log:
            return low * (high / low) ** position
        return low + (high - low) * position

    def __post_init__(self) -> None:
        numbers = (self.low, self.high)
        if not all(map(math.isfinite, numbers)) or self.low >= self.high:
            kind = "empty" if self.low == self.high else "reversed"
            told = kind if all(map(math.isfinite, numbers)) else "not finite"
            raise ConfigurationError(
                f"the range from {self.low:g} to {self.high:g} is {told}; its lower bound must be "
                "below its upper one. Where there is nothing to choose, fix the entry."
            )
        if self.log and self.low <= 0:
            raise ConfigurationError(
                f"the range from {self.low:g} to {self.high:g} has no logarithmic scale; give a "
                "lower bound above 0, or log=False."
            )
        if self.integer and any(number != int(number) for number in numbers):
            raise ConfigurationError(
                f"the range from {self.low:g} to {self.high:g} is one of integers; give "
                "integer bounds."
            )


@dataclass(frozen=True)
class Choice:
    """One of several values, each with as large a part of the unit interval.

    Attributes:
        values: The values, two or more.
    """

    values: tuple[Any, ...]

    def at(self, position: float) -> Any:
        """Return the value at a position from 0 to 1.

        Args:
            position: The position.
        """
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ConfigurationError(
                f"a choice among {list(self.values)} leaves nothing to choose; give two values or "
                "more, or fix the entry."
            )


@dataclass(frozen=True)
class Point:
    """Settings of one point.

    Attributes:
        updates: Configuration entries, nested.
        named: Named configurations.
    """

    updates: Mapping[str, Any]
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """Settings of an application that are searched.

    Attributes:
        coordinates: What each coordinate may be, by the dotted name of its configuration entry.
        settings: Takes the value of each coordinate by name and returns configuration entries,
            where these are not the same; for instance where one depends on another.
        fixed: Configuration entries of every point.
        named: Named configurations of every point.
    """

    coordinates: Mapping[str, Range | Choice]
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    fixed: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    def point(self, positions: Sequence[float]) -> Point:
        """Return the settings at a point of the unit cube.

        Args:
            positions: A position from 0 to 1 for each coordinate, in their order.
        """
        pairs = zip(self.coordinates.items(), positions, strict=True)
        values = {name: coordinate.at(float(position)) for (name, coordinate), position in pairs}
        return Point(nested(self.fixed, self.settings(values)), self.named)

    def __post_init__(self) -> None:
        if not self.coordinates:
            raise ConfigurationError("a search space without coordinates has nothing to search.")


def rounded(number: float, digits: int = 2) -> float:
    """Return a number to some digits that count.

    Args:
        number: The number.
        digits: How many.
    """
    return float(f"{number:.{digits}g}")


def jobs_of(
    experiment: str,
    points: Sequence[Point],
    seeds: Sequence[int],
    label: str,
    info: Mapping[str, Any] | None = None,
) -> list[Job]:
    """Return a job for each point and seed, the seeds of one point beside each other.

    Args:
        experiment: Module that holds the Sacred experiment as ``experiment``.
        points: The points.
        seeds: Seeds of each.
        label: Word for the progress bar.
        info: First entries of each run's ``info``.

    Raises:
        UnknownNameError: A point has an entry that the experiment has not.
        ConfigurationError: A point has a value that the experiment does not accept.
    """
    jobs = [
        Job(experiment, label, seed, point.updates, point.named, info or {})
        for point in points
        for seed in seeds
    ]
    for job in jobs[:: len(seeds)]:
        # Once for each point: else a misspelled entry would make every run fail.
        configuration_of(job)
    return jobs


def score_of(outcome: Outcome, entry: str) -> float:
    """Return what a run scored.

    Args:
        outcome: What became of the run.
        entry: Entry of its result, dotted.

    Returns:
        The score; NaN where the run failed.

    Raises:
        UnknownNameError: Its result has no such entry.
    """
    if outcome.error:
        return math.nan
    result = flatten(outcome.result)
    if entry not in result:
        raise UnknownNameError("entry of the result", entry, result)
    return float(result[entry])
