"""What asks about many runs: `runs list`, `compare`, `plot`, `best`, `group`, `report`."""

from __future__ import annotations

import argparse
from typing import Any

from metatoolkit.cli.arguments import (
    add_filter,
    add_json,
    add_named,
    add_selection,
    command,
    named_runs,
    names_of,
    selected_runs,
    tell_why,
)
from metatoolkit.cli.display import print_json, print_pairs, print_table, span
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.records.comparison import compare
from metatoolkit.records.expressions import parse_field, value_field
from metatoolkit.records.fields import Field, duration, flatten
from metatoolkit.records.query import connect
from metatoolkit.records.run import Run
from metatoolkit.records.selection import complete
from metatoolkit.records.table import differing, distinguishing, few, ranked, settings
from metatoolkit.records.terminal import say, text

CHOICES = 3
ESSENTIAL = ["id", "experiment", "status", "started", "duration"]


def add(commands: Any) -> None:
    """Describe the commands."""
    listing = command(commands, "list", "print a table of runs", list_runs)
    add_selection(listing, limit=30)
    add_json(listing)
    comparing = command(commands, "compare", "print what differs", compare_runs)
    comparing.add_argument("ids", metavar="ID", nargs="+", help="the runs")
    add_json(comparing)
    plot = command(commands, "plot", "draw a metric's curves", plot_runs)
    add_named(plot)
    plot.add_argument("--metric", required=True, help="the metric's name")
    plot.add_argument("--output", required=True, help="a png, pdf or svg file")
    plot.add_argument("--over", metavar="ENTRIES", help="average over these, such as seed")
    plot.add_argument("--log-x", action="store_true", help="logarithmic steps")
    plot.add_argument("--log-y", action="store_true", help="logarithmic values")
    best = command(commands, "best", "print which run is best", best_run)
    group = command(commands, "group", "print mean and interval over seeds, say", group_runs)
    for one in (best, group):
        one.add_argument("what", help="a field such as result.test_accuracy, or a metric's name")
        add_filter(one)
        one.add_argument(
            "--at", metavar="POINT", default="last",
            help="which value of a metric: last, min, max, or a step; default last",
        )  # fmt: skip
        add_json(one)
    best.add_argument("--min", action="store_true", help="the smallest is best")
    group.add_argument(
        "--by", metavar="FIELDS", required=True, help="what the runs of a group share"
    )
    group.add_argument(
        "--over", metavar="ENTRIES", default="seed",
        help="entries of the configuration to average over; default seed. Runs that differ in "
        "others are kept apart",
    )  # fmt: skip
    group.add_argument("--sort", metavar="COLUMN", help="for instance -mean")
    report = command(commands, "report", "write runs as one self-contained page", report_runs)
    add_named(report)
    report.add_argument("--output", default="report.html", help="default report.html")
    report.add_argument("--title", default="Runs", help="what the page is called")


def list_runs(options: argparse.Namespace) -> int:
    """Print a table of runs, newest first."""
    with connect() as database:
        selected = selected_runs(options, database)
        runs = selected.runs()
        names = names_of(options.columns) if options.columns else []
        fields = selected.fields(names)
        if options.json:
            print_json(_as_data(runs, fields))
        elif not runs:
            chosen = options.where or options.experiment or options.limit == 0 or options.offset
            print("no runs match" if chosen else "no runs yet")
        elif names:
            print_table(names, [[_cell(run, field) for field in fields] for run in runs])
        else:
            print_table(*_overview(runs), essential=len(ESSENTIAL))
        tell_why(selected)
        following = options.offset + len(runs)
        if runs and following < selected.total():
            say(f"{len(runs)} of {selected.total()} runs; --offset {following} shows the next")
    return 0


def compare_runs(options: argparse.Namespace) -> int:
    """Print what differs between runs."""
    with connect() as database:
        comparison = compare(options.ids, database=database)
        if options.json:
            keys = [text(run.id) for run in comparison.runs]
            differing_ = comparison.differing()
            print_json(
                {name: dict(zip(keys, row, strict=True)) for name, row in differing_.items()}
            )
            return 0
        columns = ["", *(text(run.id) for run in comparison.runs)]
        print_table(columns, [[name, *row] for name, row in comparison.differing().items()])
    return 0


def plot_runs(options: argparse.Namespace) -> int:
    """Draw a metric's curves."""
    with connect() as database:
        ids = [run.id for run in named_runs(options, database)]
        if not ids:
            raise ConfigurationError("no runs match: there is nothing to draw")
        comparison = compare(ids, options.metric, database)
        over = names_of(options.over) if options.over else None
        path = comparison.plot(options.output, over, options.log_x, options.log_y)
        unfinished = [text(run.id) for run in comparison.runs if run.status != "COMPLETED"]
    print(path)
    if unfinished:
        say(f"drawn although not completed: {few(unfinished)}")
    return 0


def best_run(options: argparse.Namespace) -> int:
    """Print which run is best, and how good."""
    mode = "min" if options.min else "max"
    with connect() as database:
        run = database.best(options.what, options.experiment, options.where, mode, options.at)
        field = value_field(options.what, options.at)
        pairs = [("run", run.id), (field.name, run.value(field)), ("status", run.status)]
        pairs += flatten(run.config, "config").items()
        if options.json:
            print_json(dict(pairs))
        else:
            print_pairs(pairs)
    return 0


def group_runs(options: argparse.Namespace) -> int:
    """Print a value's mean, deviation and interval over runs that share other things."""
    by = names_of(options.by)
    with connect() as database:
        runs = database.find(options.where, options.experiment)
        table = runs.group(by, options.what, options.at, names_of(options.over))
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
        rows = table.astype(object).values.tolist()
        if options.json:
            print_json([dict(zip(table.columns, row, strict=True)) for row in rows])
        else:
            print_table(list(table.columns), rows)
        for note in table.attrs["notes"]:
            say(note)
    return 0


def report_runs(options: argparse.Namespace) -> int:
    """Write runs as one page that a browser shows without a server."""
    from metatoolkit.records.report import write_report

    with connect() as database:
        runs = named_runs(options, database)
        complete(runs, [parse_field("reason")])
        print(write_report(runs, options.output, options.title))
    return 0


def _cell(run: Run, field: Any) -> Any:
    value = run.value(field)
    return span(value) if field.root == "duration" else value


def _as_data(runs: list[Run], fields: list[Field]) -> list[dict[str, Any]]:
    """Describe runs for other programs: the fields that were asked for, or what a list is of."""
    if fields:
        return [{field.name: run.value(field) for field in fields} for run in runs]
    return [
        {
            "id": run.id,
            "uuid": run.uuid,
            "experiment": run.experiment,
            "status": run.status,
            "start_time": run.document.get("start_time"),
            "duration": duration(run.document),
            "tags": run.tags,
            "config": run.config,
            "result": run.result,
        }
        for run in runs
    ]


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
