"""Choose settings of several methods with the same effort, by a score on tuning data.

A trial is a point of a Halton sequence in the settings that a method has, and every method gets the
same number of trials and seeds. The best trials of each method then get more seeds, since a setting
that fails now and then is not seen to in a few; the best mean over all seeds wins.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.experiments.applications import check_experiment
from metatoolkit.experiments.jobs import exit_code, run_jobs
from metatoolkit.experiments.search_space import Point, Space, jobs_of, score_of
from metatoolkit.experiments.words import nested, read_entries

if TYPE_CHECKING:
    with optional_import("tuning"):
        import pandas


@dataclass(frozen=True)
class Search:
    """What is searched, and how a run is scored.

    Attributes:
        experiment: Module that holds the Sacred experiment as ``experiment``.
        score: Entry of a run's result; measured on data that no method trains on and that is not
            the test's.
        spaces: Methods by label.
        first_seed: First seed; apart from those of reported runs.
        minimized: Whether smaller scores are better, as of an error that is 0 at best.
    """

    experiment: str
    score: str
    spaces: Mapping[str, Space]
    first_seed: int
    minimized: bool = False


def trials(space: Space, count: int) -> list[Point]:
    """Return the first trials of a method.

    Args:
        space: The method's settings.
        count: Number of trials.

    Returns:
        Points 1 to ``count`` of the Halton sequence; point 0 is a corner.
    """
    with optional_import("tuning"):
        from scipy.stats import qmc

    points = qmc.Halton(len(space.coordinates), scramble=False).random(count + 1)[1:]
    return [space.point(point) for point in points]


def score(
    search: Search, entries: Sequence[tuple[str, Point]], seeds: Sequence[int], processes: int
) -> pandas.DataFrame:
    """Run trials with several seeds.

    Args:
        search: The search.
        entries: Trials, each with its method.
        seeds: Seeds of each.
        processes: Number of runs at once.

    Returns:
        ``entry``, the position in ``entries``, ``seed``, ``failed`` and ``score``, which is 0 where
        the run failed, or infinite if the score is minimized.

    Raises:
        UnknownNameError: A trial has a configuration entry that the experiment has not.
    """
    with optional_import("tuning"):
        import pandas

    jobs = [
        job
        for method, point in entries
        for job in jobs_of(search.experiment, [point], seeds, method)
    ]
    outcomes = run_jobs(jobs, processes)
    worst = math.inf if search.minimized else 0.0
    return pandas.DataFrame(
        {
            "entry": [position for position in range(len(entries)) for _ in seeds],
            "seed": [job.seed for job in jobs],
            "failed": [bool(outcome.error) for outcome in outcomes],
            "score": [worst if o.error else score_of(o, search.score) for o in outcomes],
        }
    )


def tune(
    search: Search,
    *,
    count: int,
    seeds: int,
    finalists: int,
    more_seeds: int,
    processes: int = 1,
    common: Mapping[str, Any] | None = None,
    methods: Sequence[str] | None = None,
) -> pandas.DataFrame:
    """Try settings of every method, and the best ones of each with more seeds.

    Args:
        search: The search.
        count: Trials of a method.
        seeds: Seeds of each trial.
        finalists: Number of a method's best trials that get more seeds.
        more_seeds: Number of these seeds.
        processes: Runs at once.
        common: Configuration entries of all runs.
        methods: Methods to tune; by default all.

    Returns:
        A line for each trial, best first within a method: ``method``, ``settings``, ``failed`` and
        ``count``, numbers of runs, ``mean`` and ``std`` of the score. Those with more seeds come
        before the others.

    Raises:
        ConfigurationError: A number is less than 1.
        UnknownNameError: There is no such method, or ``common`` or a trial has an entry that the
            experiment has not.
    """
    for method in methods or ():
        if method not in search.spaces:
            raise UnknownNameError("method", method, search.spaces)
    with optional_import("tuning"):
        import pandas

    numbers = {"count": count, "seeds": seeds, "finalists": finalists, "more_seeds": more_seeds}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")
    chosen = list(search.spaces) if methods is None else list(dict.fromkeys(methods))
    found = [(method, one) for method in chosen for one in trials(search.spaces[method], count)]
    entries = [
        (method, replace(point, updates=nested(point.updates, common or {})))
        for method, point in found
    ]
    first = range(search.first_seed, search.first_seed + seeds)
    scores = score(search, entries, first, processes)
    means = scores.groupby("entry")["score"].mean()
    means = means.sort_values(ascending=search.minimized, kind="stable")
    final = [
        entry
        for method in chosen
        for entry in [e for e in means.index if entries[e][0] == method][:finalists]
    ]
    more = range(first.stop, first.stop + more_seeds)
    added = score(search, [entries[entry] for entry in final], more, processes)
    added["entry"] = added["entry"].map(dict(enumerate(final)))
    everything = pandas.concat([scores, added])
    table = everything.groupby("entry")["score"].agg(["count", "mean", "std"])
    table["failed"] = everything.groupby("entry")["failed"].sum()
    table = table.reset_index()
    table["method"] = [entries[entry][0] for entry in table["entry"]]
    table["settings"] = [str(found[entry][1].updates) for entry in table["entry"]]
    order = {method: place for place, method in enumerate(chosen)}
    table["place"] = table["method"].map(order)
    ascending = [True, False, search.minimized]
    table = table.sort_values(["place", "count", "mean"], ascending=ascending)
    columns = ["method", "settings", "failed", "count", "mean", "std"]
    return table[columns].reset_index(drop=True)


def main(search: Search, description: str, argv: Sequence[str] | None = None) -> int:
    """Run a search from the command line and print what it found.

    Args:
        search: The search.
        description: What ``--help`` says of it.
        argv: Arguments; by default those of the command line.

    Returns:
        Exit code: 2 for an error, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="tuning", description=description)
    parser.add_argument("--trials", type=int, default=16, help="trials a method (default: 16)")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each trial (default: 4)")
    parser.add_argument("--finalists", type=int, default=3, help="best trials (default: 3)")
    parser.add_argument("--more-seeds", type=int, default=8, help="seeds of these (default: 8)")
    parser.add_argument("--method", action="append", help="one to tune; may repeat (default: all)")
    parser.add_argument(
        "entries", nargs="*", help="configuration entries of all runs, such as steps=100"
    )
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    given = parser.parse_intermixed_args(argv)

    def command() -> int:
        check_experiment(search.experiment)
        table = tune(
            search,
            count=given.trials,
            seeds=given.seeds,
            finalists=given.finalists,
            more_seeds=given.more_seeds,
            processes=given.processes,
            common=_entries(given.entries),
            methods=given.method,
        )
        for method, part in table.groupby("method", sort=False):
            columns = part[["settings", "failed", "count", "mean", "std"]]
            print(f"\n{method}\n{columns.to_string(index=False, float_format='%.4g')}")
        return 0

    return exit_code(command)


def _entries(words: Sequence[str]) -> dict[str, Any]:
    """Return configuration entries as Sacred reads them."""
    updates, named = read_entries(words)
    if named:
        raise ConfigurationError(f"{named[0]!r} is no configuration entry; write entry=value.")
    return updates
