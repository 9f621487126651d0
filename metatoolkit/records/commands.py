"""What asks about many runs: `metatoolkit runs list`, `best`, `group`, `compare`, `export`."""

from __future__ import annotations

import argparse
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, StorageError, UnknownNameError
from metatoolkit.records.comparison import compare
from metatoolkit.records.display import plain, print_pairs, print_table, span, text
from metatoolkit.records.fields import duration, flatten
from metatoolkit.records.messages import say
from metatoolkit.records.query import Database, connect
from metatoolkit.records.run import Run
from metatoolkit.records.selection import RunSet, value_field
from metatoolkit.records.settings import differing, distinguishing, ranked, settings
from metatoolkit.records.table import series, value_of

CHOICES = 3
ESSENTIAL = ["id", "experiment", "status", "started", "duration"]


def list_runs(options: argparse.Namespace) -> int:
    """Print a table of runs, newest first.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    with connect() as database:
        selected = _selected(options, database)
        runs = selected.runs()
        if not runs:
            chosen = options.where or options.experiment or options.limit == 0
            print("no runs match" if chosen else "no runs yet")
            tell_why(selected)
            return 0
        if options.columns:
            names = _names(options.columns)
            fields = selected.fields(names)
            rows = [[_cell(run, field) for field in fields] for run in runs]
            print_table(names, rows)
        else:
            print_table(*_overview(runs), essential=len(ESSENTIAL))
        tell_why(selected)
    return 0


def compare_runs(options: argparse.Namespace) -> int:
    """Print what differs between runs.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    with connect() as database:
        comparison = compare(options.ids, database=database)
        columns = ["", *(text(run.id) for run in comparison.runs)]
        print_table(columns, [[name, *row] for name, row in comparison.differing().items()])
    return 0


def plot_runs(options: argparse.Namespace) -> int:
    """Draw a metric's curves.

    Args:
        options: The command line.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: There are no runs.
    """
    with connect() as database:
        ids = [run.id for run in _named(options, database)]
        if not ids:
            raise ConfigurationError("no runs match: there is nothing to draw")
        comparison = compare(ids, options.metric, database)
        path = comparison.plot(options.output, options.over, options.log_x, options.log_y)
    print(path)
    return 0


def best_run(options: argparse.Namespace) -> int:
    """Print which run is best, and how good.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    mode = "min" if options.min else "max"
    with connect() as database:
        run = database.best(options.what, options.experiment, options.where, mode, options.at)
        field = value_field(options.what, options.at)
        pairs = [("run", run.id), (field.name, value_of(run, field)), ("status", run.status)]
        print_pairs([*pairs, *flatten(run.config, "config").items()])
    return 0


def group_runs(options: argparse.Namespace) -> int:
    """Print a value's mean, deviation and interval over runs that share other things.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    by = _names(options.by)
    with connect() as database:
        runs = database.find(options.where, options.experiment)
        table = runs.group(by, options.what, options.at, _names(options.over))
        if table.empty:
            print("no run has a number there")
            tell_why(runs)
            return 0
        if options.sort:
            downward = options.sort.startswith("-")
            name = options.sort.lstrip("-")
            if name not in table.columns:
                raise UnknownNameError("column", name, list(table.columns))
            table = table.sort_values(name, ascending=not downward)
        print_table(list(table.columns), table.astype(object).values.tolist())
        for note in table.attrs["notes"]:
            say(note)
    return 0


def report_runs(options: argparse.Namespace) -> int:
    """Write runs as one page that a browser shows without a server.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    from metatoolkit.records.report import write_report

    with connect() as database:
        runs = _named(options, database)
        print(write_report(runs, options.output, options.title))
    return 0


def export_runs(options: argparse.Namespace) -> int:
    """Write a table of runs as CSV, Parquet or LaTeX.

    Args:
        options: The command line.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: Parquet needs a file.
        StorageError: The file cannot be written.
    """
    columns = _names(options.columns) if options.columns else None
    with connect() as database:
        runs = _selected(options, database)
        table = series(runs.runs(), options.metric) if options.metric else runs.table(columns)
        tell_why(runs)
    output = Path(options.output) if options.output else None
    if output is None:
        if options.format == "parquet":
            raise ConfigurationError("a Parquet file is binary: name it with --output")
        written = StringIO()
        _write_table(table, options.format, written)
        shown = written.getvalue()
        print(plain(shown) if sys.stdout.isatty() else shown, end="")
        return 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_table(table, options.format, output)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror or error}") from error
    print(output)
    return 0


def _write_table(table: Any, form: str, target: Any) -> None:
    if form == "csv":
        table.to_csv(target, index=False)
    elif form == "latex":
        table.to_latex(target, index=False, escape=True)
    else:
        mixed = [name for name in table.columns if table[name].dtype.kind == "O"]
        table[mixed] = table[mixed].astype(str)
        table.to_parquet(target, index=False)


def _named(options: argparse.Namespace, database: Database) -> list[Run]:
    """Find the runs that the command line names, or else selects."""
    if options.ids:
        return [database[one] for one in options.ids]
    selected = _selected(options, database)
    tell_why(selected)
    return selected.runs()


def tell_why(runs: RunSet) -> None:
    """Say on stderr why a selection is empty, where that is known.

    Args:
        runs: The selection.
    """
    hint = runs.hint()
    if hint is not None:
        say(hint)


def _selected(options: argparse.Namespace, database: Any) -> RunSet:
    runs: RunSet = database.find(options.where, options.experiment)
    runs = runs.sort(*(_names(options.sort) if options.sort else ["-start_time"]))
    return runs.limit(options.limit) if options.limit is not None else runs


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _cell(run: Run, field: Any) -> Any:
    value = value_of(run, field)
    return span(value) if field.root == "duration" else value


def _overview(runs: list[Run]) -> tuple[list[str], list[list[Any]]]:
    configs = [flatten(run.config, "config") for run in runs]
    results = [flatten(run.result, "result") if run.result is not None else {} for run in runs]
    shown = [
        {name: value for name, value in one.items() if isinstance(value, int | float | str)}
        for one in results
    ]
    varying = differing(shown)
    chosen = [settings(run) for run in runs]
    entries = ranked(chosen)
    # What tells runs apart comes first, then what came of them, as long as there is room.
    telling = distinguishing(chosen)
    first = [
        name
        for place, name in enumerate(entries)
        if place < CHOICES or name in telling or name == "config.seed"
    ]
    constant = [name for one in shown for name in one]
    names = [*first, *varying, *entries, *ranked(configs), *constant]
    names = list(dict.fromkeys(names))
    rows = []
    for run, config, result in zip(runs, configs, results, strict=True):
        document = run.document
        row = [run.id, run.experiment, run.status, document.get("start_time")]
        row += [span(duration(document))]
        rows.append([*row, *({**config, **result}.get(name) for name in names)])
    return [*ESSENTIAL, *names], rows
