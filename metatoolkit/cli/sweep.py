"""Runs for every combination of some values: `metatoolkit sweep`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from metatoolkit.cli.arguments import command
from metatoolkit.cli.display import print_table
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.fields import flatten
from metatoolkit.records.terminal import say, text

EXAMPLES = """\
examples:
  metatoolkit sweep label_noise --over method=plain,evograd --over seed=0..4 --workers 4
  metatoolkit sweep my_app.py --over lr=0.01,0.1 --scheduler tcp://10.0.0.1:8786 with steps=500

A point is one run. Where the sweep says nothing of the seed, it is 1. The same command again runs
what is missing or has failed; more values of the same entries, and only theirs.
"""


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    parser = command(commands, "sweep", "run an application for every combination", sweep)
    parser.epilog = EXAMPLES
    parser.add_argument("application", help="its name, or its file or folder")
    parser.add_argument(
        "--over", action="append", metavar="ENTRY=VALUES", required=True,
        help="values of an entry with commas between them, or 0..4; may repeat",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="runs at once; default one per core, up to 4")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster")
    parser.add_argument(
        "--with", nargs="+", default=[], metavar="ENTRY=VALUE", dest="words",
        help="entries and named configurations of all points; `with` will do",
    )  # fmt: skip


def sweep(options: argparse.Namespace) -> int:
    """Run the points of a grid that are missing, and print all of them.

    Args:
        options: The command line.

    Returns:
        The exit code: 1 where a point has failed.

    Raises:
        ConfigurationError: A number is out of range, or the grid or the scheduler is not what it
            should be.
        UnknownNameError: There is no such application, or it has no such entry.
    """
    from metatoolkit.experiments.cluster import run_jobs_on_cluster
    from metatoolkit.experiments.jobs import run_jobs
    from metatoolkit.experiments.sweep import Sweep, run_missing
    from metatoolkit.experiments.words import read_entries, read_values

    workers, scheduler = options.workers, options.scheduler
    if workers is not None and workers < 1:
        raise ConfigurationError(f"--workers is {workers}; at least 1 is needed.")
    over: dict[str, list[Any]] = {}
    for word in options.over:
        name, values = read_values(word)
        if name in over:
            raise ConfigurationError(f"--over names {name} twice; give all its values in one.")
        over[name] = values
    asked = Sweep(options.application, over, *read_entries(options.words))

    def run(jobs: Any) -> Any:
        if scheduler is not None:
            return run_jobs_on_cluster(jobs, options.application, scheduler, workers)
        return run_jobs(jobs, workers or min(len(os.sched_getaffinity(0)), 4))

    outcomes, ran = run_missing(asked, run)
    if ran < len(outcomes):
        say(f"{len(outcomes) - ran} of {len(outcomes)} runs were there already")
    results = [flatten({"result": one.result}) if one.result else {} for one in outcomes]
    columns = list(dict.fromkeys(name for one in results for name in one))
    rows = [
        [*point.values(), "FAILED" if outcome.error else "COMPLETED", outcome.run]
        + [result.get(name) for name in columns]
        for point, outcome, result in zip(asked.points(), outcomes, results, strict=True)
    ]
    print_table([*over, "status", "run", *columns], rows, essential=len(over) + 2)
    for outcome in outcomes:
        if outcome.error:
            print(f"failed: {text(outcome.job.label)}: {text(outcome.error)}")
    where = f"info.study.name == '{asked.name}'"
    print(f'list runs: metatoolkit runs list --experiment {asked.experiment} --where "{where}"')
    return 1 if any(outcome.error for outcome in outcomes) else 0
