"""What changes runs: `metatoolkit runs tag`, `note`, `rm`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from metatoolkit.cli.arguments import command, tell_why
from metatoolkit.errors import ConfigurationError
from metatoolkit.records import edits
from metatoolkit.records.query import connect
from metatoolkit.records.run import Run
from metatoolkit.records.terminal import text


def add(commands: Any) -> None:
    """Describe the commands."""
    tag = command(commands, "tag", "put tags on runs", tag_runs)
    tag.add_argument("tag", help="a tag, or several with commas between them")
    tag.add_argument("ids", metavar="ID", nargs="+", help="the runs")
    tag.add_argument("--remove", action="store_true", help="take them off")
    note = command(commands, "note", "print or replace notes", note_run)
    note.add_argument("id", metavar="ID", help="the run")
    note.add_argument("text", nargs="?", help="the new notes; without, they are printed")
    remove = command(commands, "rm", "delete runs, after asking", remove_runs)
    remove.add_argument("ids", metavar="ID", nargs="*", help="the runs")
    remove.add_argument("--where", metavar="EXPRESSION", help="all runs for which this holds")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def tag_runs(options: argparse.Namespace) -> int:
    """Put tags on runs, or take them off."""
    tags = options.tag.split(",")
    with connect() as database:
        for run in [database[one] for one in options.ids]:
            now = edits.tag(run, tags, options.remove)
            print(f"run {text(run.id)}: {text(now) or 'no tags'}")
    return 0


def note_run(options: argparse.Namespace) -> int:
    """Print or replace a run's notes."""
    with connect() as database:
        run = database[options.id]
        if options.text is not None:
            edits.note(run, options.text)
        for line in run.notes.splitlines():
            print(text(line))
    return 0


def remove_runs(options: argparse.Namespace) -> int:
    """Delete runs, after asking; the exit code is 1 if the answer was no."""
    if not options.ids and not options.where:
        raise ConfigurationError("name the runs to delete, or select them with --where")
    with connect() as database:
        runs = [database[one] for one in options.ids]
        if options.where:
            selected = database.find(options.where)
            tell_why(selected)
            named = {run.key for run in runs}
            runs += [run for run in selected if run.key not in named]
        if not runs:
            print("no runs match")
            return 0
        if not options.yes and not _agreed(runs):
            print("nothing was deleted")
            return 1
        edits.delete(runs)
        print(f"deleted: {', '.join(text(run.id) for run in runs)}")
    return 0


def _agreed(runs: list[Run]) -> bool:
    for run in runs[:20]:
        started = text(run.document.get("start_time"))
        print(f"{text(run.id)}  {text(run.experiment)}  {run.status}  {started}")
    if len(runs) > 20:
        print(f"and {len(runs) - 20} more")
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError("deleting asks first, and nobody can answer here: add --yes")
    answer = input(f"Delete {len(runs)} run{'s' * (len(runs) > 1)} for good? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
