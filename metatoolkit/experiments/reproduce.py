"""Run studies and write what they gave: ``scripts/reproduce rotation``.

A study runs each of its configurations with several seeds, every run recorded. Table, figure and
document are made from the database, newest complete run first, so that a study that was interrupted
or repeated needs no bookkeeping: ``--missing`` runs what the database lacks, ``--no-run`` nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.experiments.applications import applications, check_experiment, module_of
from metatoolkit.experiments.jobs import exit_code, run_jobs

if TYPE_CHECKING:
    import pandas

    from metatoolkit.experiments.jobs import Job, Outcome
    from metatoolkit.experiments.studies import Study


def find_studies() -> dict[str, Any]:
    """Return the studies of all applications by name, in the order of the applications."""
    found = {}
    for application in applications():
        package = module_of(application)
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            continue
        name = f"{package}.study"
        if importlib.util.find_spec(name) is not None:
            for study in importlib.import_module(name).STUDIES:
                found[study.name] = study
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="Run studies, print their tables and write figures and a document.",
        epilog="With --list, the studies and what they hold.",
    )
    parser.add_argument(
        "studies",
        nargs="*",
        help="names of studies (default: those of EvoGrad's paper, of long ones fewer seeds)",
    )
    parser.add_argument("--list", action="store_true", help="list the studies and stop")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the study's)")
    parser.add_argument("--first-seed", type=int, help="first seed (default: the study's)")
    parser.add_argument(
        "--without", action="append", default=[], metavar="ROW", help="row to leave out; repeatable"
    )
    parser.add_argument("--steps", type=int, help="training steps of each run, for a quick look")
    parser.add_argument("--device", help="where to run, such as cuda (default: the CPU)")
    parser.add_argument("--processes", type=int, help="runs at once (default: one per core)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of figures")
    parser.add_argument("--document", type=Path, help="Markdown file to write, such as results.md")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--missing", action="store_true", help="run only what the database lacks")
    what.add_argument("--no-run", action="store_true", help="run nothing, show what there is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        Exit code: 1 where a run failed or is missing, 2 for an error, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(argv)
    return exit_code(lambda: reproduce(options))


def reproduce(options: argparse.Namespace) -> int:
    """Do what the command line asks.

    Args:
        options: What :func:`build_parser` parsed.

    Returns:
        Exit code: 1 where a run failed or is missing, else 0.

    Raises:
        UnknownNameError: There is no such study, or no such row in one of them.
        ConfigurationError: A number is out of range, or no file can be written where it should.
    """
    from metatoolkit import records
    from metatoolkit.experiments import by_application, results_page
    from metatoolkit.experiments.recorded_jobs import digest
    from metatoolkit.experiments.studies import collect, jobs_of
    from metatoolkit.records.terminal import text

    known = find_studies()
    if options.list:
        for study in known.values():
            runs, few = len(study.rows) * len(study.seeds), study.usual_seeds
            usual = {None: "", 0: ", by name"}.get(few, f", {few} of {len(study.seeds)} seeds")
            print(f"{study.name:34} {runs:4} runs  {study.title}{usual}")
        runs = sum(len(s.rows) * len(s.seeds) for s in known.values() if _compares(s))
        print(f"{by_application.NAME:34} {runs:4} runs  {by_application.TITLE}")
        return 0
    asked = list(options.studies)
    if by_application.NAME in asked:
        asked.remove(by_application.NAME)
        asked += [n for n, s in known.items() if _compares(s) and n not in asked]
    for name in asked:
        if name not in known:
            raise UnknownNameError("study", name, [*known, by_application.NAME])
    for name in ("seeds", "steps", "processes"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ConfigurationError(f"--{name} is {number}; at least 1 is needed.")
    for folder in (options.output, options.document and options.document.parent):
        if folder is not None:
            _check_folder(folder)
    # What is run by name alone is shown with the others.
    unnamed = [name for name, study in known.items() if study.usual_seeds != 0 or options.no_run]
    chosen = [known[name].without(options.without) for name in asked or unnamed]
    for study in chosen:
        check_experiment(study.experiment)
    processes = options.processes or min(len(os.sched_getaffinity(0)), 4)
    updates = {n: v for n in ("steps", "device") if (v := getattr(options, n)) is not None}
    found, failures, incomplete = [], 0, 0
    ran: set[str] = set()
    with contextlib.ExitStack() as stack:
        for study in chosen:
            jobs = jobs_of(study, _seeds(study, options), updates)
            # A configuration that two studies have is run once.
            due = [job for job in _due(study, jobs, options) if digest(job) not in ran]
            ran |= {digest(job) for job in due}
            failed: list[Outcome] = []
            if due:
                print(f"{study.name}: {len(due)} runs, {processes} at once", flush=True)
                failed = [outcome for outcome in run_jobs(due, processes) if outcome.error]
                failures += len(failed)
            # A connection of its own, that sees what was just run; the document reads from all.
            database = stack.enter_context(records.connect())
            frame = collect(study, jobs, database)
            found.append((study, frame))
            _show(study, frame)
            missing = lacking(study, jobs, frame)
            incomplete += len(missing)
            for sentence in missing:
                print(sentence)
            for outcome in failed:
                job = outcome.job
                print(f"failed:    {job.label}, seed {job.seed}: {text(outcome.error)}")
            figure = _draw(study, frame, options.output)
            if figure is not None:
                print(f"figure:    {figure.resolve()}")
            print(f"database:  {database.address}")
            list_runs = f"{_command()} runs list --experiment {study.application}"
            print(f"list runs: {list_runs}\n", flush=True)
            if options.document is not None:
                results_page.write(found, options.document)
        if by_application.NAME in options.studies:
            _show_by_application([pair for pair in found if _compares(pair[0])], options.output)
    if options.document is not None:
        print(f"document:  {options.document.resolve()}")
    return 1 if failures or incomplete else 0


def lacking(study: Study, jobs: Sequence[Job], frame: pandas.DataFrame) -> list[str]:
    """Say which rows have fewer runs than seeds, so that nobody takes their mean for the whole.

    Args:
        study: The study.
        jobs: Its jobs.
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.

    Returns:
        One sentence for each such row.
    """
    sentences = []
    for label in study.rows:
        present = set(frame.loc[frame["row"] == label, "seed"])
        seeds = [job.seed for job in jobs if job.label == label]
        missing = [str(seed) for seed in seeds if seed not in present]
        if missing:
            sentences.append(
                f"missing:   {label}: {len(missing)} of {len(seeds)} runs "
                f"(seed {', '.join(missing)})"
            )
    return sentences


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to before anything runs."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigurationError(
            f"nothing can be written to {folder}: {existing} is "
            f"{'not writable' if existing.is_dir() else 'no folder'}. Give another folder."
        )


def _due(study: Any, jobs: list[Any], options: argparse.Namespace) -> list[Any]:
    """Return the jobs to run."""
    if options.no_run:
        return []
    if not options.missing:
        return jobs
    from metatoolkit import records
    from metatoolkit.experiments.studies import collect

    with records.connect() as database:
        frame = collect(study, jobs, database)
    present = set(zip(frame["row"], frame["seed"], strict=True))
    return [job for job in jobs if (job.label, job.seed) not in present]


def _seeds(study: Any, options: argparse.Namespace) -> list[int]:
    if options.seeds is None and options.first_seed is None:
        few = None if options.studies or options.no_run else study.usual_seeds
        return list(study.seeds[:few])
    first = study.seeds[0] if options.first_seed is None else options.first_seed
    return list(range(first, first + (options.seeds or len(study.seeds))))


def _command() -> str:
    """Return what to type for the command `metatoolkit` of this environment."""
    path = Path(sys.executable).parent / "metatoolkit"
    if shutil.which("metatoolkit") == str(path):
        return "metatoolkit"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _draw(study: Any, frame: Any, folder: Path) -> Path | None:
    """Write the study's figure, and return where it is."""
    if study.draw is None or frame.empty:
        return None
    with optional_import("a figure"):
        import matplotlib

    matplotlib.use("Agg")
    path = folder / f"{study.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    study.draw(frame, path)
    return path


def _compares(study: Any) -> bool:
    from metatoolkit.experiments.by_application import EstimatorStudy

    return isinstance(study, EstimatorStudy)


def _show_by_application(found: list[Any], folder: Path) -> None:
    """Print the estimators of all applications side by side, and draw them."""
    from metatoolkit.experiments import by_application

    console = _print_table(by_application.TITLE, by_application.table(found))
    console.print(by_application.NOTE, highlight=False)
    path = folder / f"{by_application.NAME}.png"
    by_application.draw(found, path)
    print(f"figure:    {path.resolve()}")


def _print_table(title: str, lines: list[list[str]]) -> Any:
    """Print a table whose first line is its head, and return the console."""
    with optional_import("the table of a study"):
        from rich.console import Console
        from rich.table import Table

    table = Table(title=title)
    for place, header in enumerate(lines[0]):
        table.add_column(header, justify="right" if place else "left")
    for line in lines[1:]:
        table.add_row(*line)
    # A pipe or a file has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    return console


def _show(study: Any, frame: Any) -> None:
    """Print the table, and what became of the claims."""
    from metatoolkit.experiments.studies import judge, summarize

    head = ["", *(column.header for column in study.columns)]
    console = _print_table(study.title, [head, *summarize(study, frame)])
    for sentence in judge(study, frame):
        console.print(sentence, highlight=False)
    if study.note:
        console.print(study.note, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
