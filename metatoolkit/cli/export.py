"""What writes tables of runs for other programs: `metatoolkit runs export`."""

from __future__ import annotations

import argparse
import json
import sys
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

from metatoolkit.cli.arguments import add_selection, command, names_of, selected_runs, tell_why
from metatoolkit.cli.display import as_json
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.query import connect
from metatoolkit.records.run import writing
from metatoolkit.records.table import series
from metatoolkit.records.terminal import harmless

ENDINGS = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".tex": "latex",
    ".latex": "latex",
    ".json": "json",
}


def add(commands: Any) -> None:
    """Describe the command."""
    export = command(commands, "export", "write a table of runs", export_runs)
    add_selection(export)
    export.add_argument("--metric", help="one row per value of this metric, instead of per run")
    export.add_argument(
        "--format", choices=("csv", "parquet", "latex", "json"),
        help="default: what the file's ending says, else csv",
    )  # fmt: skip
    export.add_argument("--output", help="a file; by default the terminal")


def export_runs(options: argparse.Namespace) -> int:
    """Write a table of runs as CSV, Parquet, LaTeX or JSON."""
    output = Path(options.output) if options.output else None
    form = _format(options.format, output)
    columns = names_of(options.columns) if options.columns else None
    with connect() as database:
        runs = selected_runs(options, database)
        table = series(runs.runs(), options.metric) if options.metric else runs.table(columns)
        tell_why(runs)
    if output is None:
        written = StringIO()
        _write_table(table, form, written)
        shown = written.getvalue()
        if sys.stdout.isatty():
            print(harmless(shown, keep="\n\t\r"), end="")
            return 0
        if isinstance(sys.stdout, TextIOWrapper):
            # A file gets the data as they are, whatever letters the terminal knows.
            sys.stdout.reconfigure(encoding="utf-8")
        print(shown, end="")
        return 0
    with writing(output):
        _write_table(table, form, output)
    print(output)
    return 0


def _format(given: str | None, output: Path | None) -> str:
    """Tell the format from the option and the file's ending, which must not contradict."""
    ending = output.suffix.lower() if output is not None else ""
    meant = ENDINGS.get(ending)
    if given is None:
        if meant is None and ending not in ("", ".txt"):
            raise ConfigurationError(
                f"no format ends in {ending}: name the file {', '.join(ENDINGS)}, or add --format"
            )
        return meant or "csv"
    if meant is not None and meant != given:
        raise ConfigurationError(
            f"--format {given} contradicts {output}, which would be {meant}: leave one of them out"
        )
    if given == "parquet" and output is None:
        raise ConfigurationError("a Parquet file is binary: name it with --output")
    return given


def _write_table(table: Any, form: str, target: Any) -> None:
    if form == "csv":
        table.to_csv(target, index=False)
    elif form == "json":
        written = json.dumps(as_json(table.astype(object).to_dict("records")), indent=2) + "\n"
        target.write_text(written, "utf-8") if isinstance(target, Path) else target.write(written)
    elif form == "latex":
        table.to_latex(target, index=False, escape=True)
    else:
        mixed = [name for name in table.columns if table[name].dtype.kind == "O"]
        table[mixed] = table[mixed].astype(str)
        table.to_parquet(target, index=False)
