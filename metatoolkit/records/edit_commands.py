"""What changes or follows runs: `metatoolkit runs tag`, `note`, `rm`, `tail`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from metatoolkit.errors import ConfigurationError, QueryError
from metatoolkit.records import edits
from metatoolkit.records.commands import tell_why
from metatoolkit.records.display import plain, text
from metatoolkit.records.query import Database, connect
from metatoolkit.records.run import Run
from metatoolkit.records.tail import Follower


def tag_runs(options: argparse.Namespace) -> int:
    """Put tags on runs, or take them off.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    tags = options.tag.split(",")
    with connect() as database:
        for run in [database[one] for one in options.ids]:
            now = edits.tag(run, tags, options.remove)
            print(f"run {text(run.id)}: {text(now) or 'no tags'}")
    return 0


def note_run(options: argparse.Namespace) -> int:
    """Print or replace a run's notes.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    with connect() as database:
        run = database[options.id]
        if options.text is not None:
            edits.note(run, options.text)
        for line in run.notes.splitlines():
            print(text(line))
    return 0


def remove_runs(options: argparse.Namespace) -> int:
    """Delete runs, after asking.

    Args:
        options: The command line.

    Returns:
        0, or 1 if the answer was no.

    Raises:
        ConfigurationError: Nothing is selected, or nobody can be asked.
    """
    if not options.ids and not options.where:
        raise ConfigurationError("name the runs to delete, or select them with --where")
    with connect() as database:
        runs = [database[one] for one in options.ids]
        if options.where:
            selected = database.find(options.where)
            tell_why(selected)
            runs += [run for run in selected if run.key not in _keys(runs)]
        if not runs:
            print("no runs match")
            return 0
        if not options.yes and not _agreed(runs):
            print("nothing was deleted")
            return 1
        edits.delete(runs)
        print(f"deleted: {', '.join(text(run.id) for run in runs)}")
    return 0


def tail_run(options: argparse.Namespace) -> int:
    """Follow a run until it ends.

    Args:
        options: The command line.

    Returns:
        0 if it was completed, else 1.
    """
    with connect() as database:
        run = database[options.id] if options.id else _running(database)
        follower = Follower(database, run, names=options.metric, output=not options.quiet)
        for news in follower.news():
            if news.metric is None:
                print(plain(news.value), end="", flush=True)
            else:
                print(
                    f"{text(news.metric)}  step {text(news.step)}  {text(news.value)}", flush=True
                )
    print(f"run {text(run.id)}: {text(follower.status)}")
    return 0 if follower.status == "COMPLETED" else 1


def _running(database: Database) -> Run:
    for run in database.find("status == 'RUNNING'").sort("-start_time").limit(1):
        return run
    raise QueryError("no run goes on; name one to see what it printed")


def _keys(runs: list[Run]) -> set[Any]:
    return {run.key for run in runs}


def _agreed(runs: list[Run]) -> bool:
    for run in runs[:20]:
        print(f"{text(run.id)}  {text(run.experiment)}  {run.status}  {text(_started(run))}")
    if len(runs) > 20:
        print(f"and {len(runs) - 20} more")
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError("deleting asks first, and nobody can answer here: add --yes")
    answer = input(f"Delete {len(runs)} run{'s' * (len(runs) > 1)} for good? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _started(run: Run) -> Any:
    return run.document.get("start_time")
