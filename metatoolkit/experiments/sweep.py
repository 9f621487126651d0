"""Sweeps: every combination of some values of configuration entries, each a recorded run."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.applications import check_entries, load_application, module_of
from metatoolkit.experiments.jobs import Job, Outcome
from metatoolkit.experiments.recorded_jobs import completed_runs, digest, placed
from metatoolkit.experiments.words import nested
from metatoolkit.records.fields import flatten

SEED = 1
"""Seed of all points where the sweep gives none; a drawn one would be another one every time."""


@dataclass(frozen=True)
class Sweep:
    """The cartesian grid over some entries of an application's configuration.

    Attributes:
        application: The application's name, or the path of its file or folder.
        over: Values of each swept entry, by its dotted name.
        updates: Configuration entries of all points, nested.
        named: Named configurations of all points.
    """

    application: str
    over: Mapping[str, Sequence[Any]]
    updates: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that its runs carry; more values of the same entries do not change it."""
        told = [self.experiment, sorted(self.over), self.updates, self.named]
        text = json.dumps(told, sort_keys=True, default=str)
        return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def experiment(self) -> str:
        """The name of the application's experiment, by which its runs are found."""
        return str(load_application(self.application).path)

    def points(self) -> list[dict[str, Any]]:
        """Return the swept entries of each point, the last entry changing fastest."""
        values = itertools.product(*self.over.values())
        return [dict(zip(self.over, one, strict=True)) for one in values]

    def jobs(self) -> list[Job]:
        """Return a job for each point, in their order.

        Raises:
            ConfigurationError: Nothing is swept, an entry is both swept and given, or a value is
                not accepted.
            UnknownNameError: There is no such application, or it has no such entry.
        """
        if not self.over or not all(self.over.values()):
            raise ConfigurationError("a sweep needs values; give entry=value,value to sweep over.")
        both = [name for name in flatten(self.updates) if name in self.over]
        if both:
            raise ConfigurationError(
                f"{both[0]} is both swept over and given one value; leave out one of the two."
            )
        check_entries(self.application, self.over, self.updates, self.named)
        module = module_of(self.application)
        jobs = []
        for point in self.points():
            entries = nested({"seed": SEED}, self.updates, point)
            label = ", ".join(f"{name}={value}" for name, value in point.items())
            jobs.append(Job(module, label, entries.pop("seed"), entries, self.named))
        return placed(jobs, self.name)


def run_missing(
    sweep: Sweep, run: Callable[[Sequence[Job]], list[Outcome]]
) -> tuple[list[Outcome], int]:
    """Run the points of a sweep of which the database has no completed run.

    Args:
        sweep: The sweep.
        run: Runs jobs, such as :func:`metatoolkit.experiments.jobs.run_jobs`.

    Returns:
        What became of each point, in the order of the points, and how many were run now.

    Raises:
        ConfigurationError: As in :meth:`Sweep.jobs`, and whatever ``run`` raises.
        UnknownNameError: As in :meth:`Sweep.jobs`.
    """
    from metatoolkit import records

    jobs = sweep.jobs()
    with records.connect() as database:
        known = completed_runs(database, sweep.experiment, sweep.name)
        there = {
            place: Outcome(job, known[digest(job)].result, run=known[digest(job)].id)
            for place, job in enumerate(jobs)
            if digest(job) in known
        }
    due = [job for place, job in enumerate(jobs) if place not in there]
    ran = iter(run(due) if due else [])
    return [there[place] if place in there else next(ran) for place in range(len(jobs))], len(due)
