"""The command line of the benchmarks: run them under record, and write their pages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import page, registry
from metatoolkit.errors import UnknownNameError
from metatoolkit.experiments.jobs import exit_code, run_jobs
from metatoolkit.records.terminal import text

DOCUMENTS = Path("docs/benchmarks")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="Measure contenders side by side under record, and write tables and figures "
        "from the experiment database.",
        epilog="Other libraries come with the extra `benchmarks`; one that is missing gets a row "
        "that says so.",
    )
    parser.add_argument("benchmarks", nargs="*", help="names of benchmarks (default: all)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument(
        "--quick", action="store_true", help="small cases alone and few turns: minutes in all"
    )
    parser.add_argument(
        "--output", type=Path, help=f"folder of the pages (default: {DOCUMENTS}; quick: results)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--missing", action="store_true", help="run only what the database lacks")
    what.add_argument("--no-run", action="store_true", help="run nothing, write what there is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        Exit code: 1 where a run failed or is missing, 2 for an error, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(argv)
    return exit_code(lambda: benchmark(options))


def benchmark(options: argparse.Namespace) -> int:
    """Do what the command line asks.

    Args:
        options: What :func:`build_parser` parsed.

    Returns:
        Exit code: 1 where a run failed or is missing, else 0.

    Raises:
        UnknownNameError: There is no such benchmark.
    """
    from benchmarks.harness.experiment import collect, jobs_of
    from metatoolkit import records

    known = registry.benchmarks()
    if options.list:
        for one in known.values():
            quick = sum(case.quick for case in one.cases.values())
            print(f"{one.name:16} {len(one.cases):2} cases, {quick} quick  {one.title}")
        return 0
    for name in options.benchmarks:
        if name not in known:
            raise UnknownNameError("benchmark", name, known)
    chosen = [known[name] for name in options.benchmarks or known]
    folder = options.output or (Path("results/benchmarks") if options.quick else DOCUMENTS)
    jobs = {one.name: jobs_of(one, options.quick) for one in chosen}
    due = [job for several in jobs.values() for job in several]
    if options.missing or options.no_run:
        with records.connect() as database:
            present = {one.name: collect(jobs[one.name], database) for one in chosen}
        due = [job for n, several in jobs.items() for job in several if job.label not in present[n]]
    # One at a time: another one beside it would be measured too.
    outcomes = [] if options.no_run or not due else run_jobs(due, 1)
    failures = [outcome for outcome in outcomes if outcome.error]
    for outcome in failures:
        print(f"failed:    {outcome.job.label}: {text(outcome.error)}")
    incomplete = 0
    with records.connect() as database:
        for one in chosen:
            runs = collect(jobs[one.name], database)
            lacking = [job.label for job in jobs[one.name] if job.label not in runs]
            incomplete += len(lacking)
            for label in lacking:
                print(f"missing:   {one.name}: {label}")
            if runs:
                print(f"page:      {page.write(one, runs, folder).resolve()}")
        print(f"database:  {database.address}")
    return 1 if failures or incomplete else 0
