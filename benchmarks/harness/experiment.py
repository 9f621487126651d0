"""One case of a benchmark as a recorded run: ``python -m benchmarks`` starts many of them."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.harness import measure
from benchmarks.harness.declared import Benchmark
from benchmarks.harness.registry import find
from benchmarks.machine import describe_machine
from metatoolkit import records
from metatoolkit.errors import UnknownNameError
from metatoolkit.experiments.configuration import Count, Seed, Settings, Text, entry
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.jobs import Job
from metatoolkit.experiments.recorded_jobs import completed_runs, digest, placed
from metatoolkit.records import Database, Run

QUICK_ROUNDS, QUICK_DRAWS = 3, 3


class CaseSettings(Settings):
    """Configuration of a run."""

    seed: Seed = entry(..., "Without effect: all problems are seeded by themselves.")
    benchmark: Text = entry("estimators", "Name of the benchmark.")
    case: Text = entry("weights", "Label of the case.")
    rounds: Count = entry(5, "Turns that each contender is timed in.")
    draws: Count = entry(20, "Calls of a random contender for its error.")
    progress: bool = entry(False, "Without effect.")


experiment = records.experiment("benchmarks")
configure(experiment, CaseSettings)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, Any]:
    """Measure one case.

    Returns:
        What :func:`benchmarks.harness.measure.measure` found of each contender.

    Raises:
        UnknownNameError: There is no such benchmark or case.
    """
    torch.set_num_threads(1)
    name, label = _config["benchmark"], _config["case"]
    cases = find(name).cases
    if label not in cases:
        raise UnknownNameError("case", label, cases)
    _run.info["machine"] = describe_machine()
    return measure.measure(name, label, cases[label], _config["rounds"], _config["draws"])


def jobs_of(benchmark: Benchmark, quick: bool) -> list[Job]:
    """Return a job for each case.

    Args:
        benchmark: The benchmark.
        quick: Whether cases that take long are left out, and the others taken fewer times.
    """
    jobs = []
    for label, case in benchmark.cases.items():
        updates = {"benchmark": benchmark.name, "case": label, "rounds": case.rounds}
        if quick:
            updates |= {"rounds": min(case.rounds, QUICK_ROUNDS), "draws": QUICK_DRAWS}
        if case.quick or not quick:
            jobs.append(Job("benchmarks.harness.experiment", label, 0, updates))
    return placed(jobs, benchmark.name)


def collect(jobs: list[Job], database: Database) -> dict[str, Run]:
    """Return the newest completed run of each case, by label.

    Args:
        jobs: Jobs of :func:`jobs_of`.
        database: Where to look.
    """
    newest = completed_runs(database, "benchmarks")
    return {job.label: newest[digest(job)] for job in jobs if digest(job) in newest}
