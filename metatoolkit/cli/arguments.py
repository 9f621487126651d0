"""What commands share: how they are described, how runs are selected, what is said of that."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from metatoolkit.records.query import Database
from metatoolkit.records.run import Run
from metatoolkit.records.selection import RunSet
from metatoolkit.records.terminal import say

EXPRESSIONS = """\
expressions:
  config.method == 'evograd' and result.test_accuracy > 0.8
  status in ['FAILED', 'INTERRUPTED'] and start_time > '2 days'
  metrics['valid_loss'].min < 0.3 and 'paper' in tags
  matches(experiment, '^label') and not exists(config.sigma)
"""


def command(
    commands: Any, name: str, purpose: str, handler: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Describe a command.

    Args:
        commands: Where it goes.
        name: Its name.
        purpose: What it does, in a few words.
        handler: Carries it out.

    Returns:
        Its parser.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command print JSON.

    Args:
        parser: Its parser.
    """
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Let a command be told which runs it is about.

    Args:
        parser: Its parser.
    """
    parser.epilog = EXPRESSIONS
    parser.add_argument("--experiment", help="only runs of this experiment")
    parser.add_argument("--where", metavar="EXPRESSION", help="only runs for which this holds")


def add_selection(
    parser: argparse.ArgumentParser, limit: int | None = None, columns: bool = True
) -> None:
    """Let a command select runs, in an order.

    Args:
        parser: Its parser.
        limit: How many runs at most, unless something else is asked for.
        columns: Whether it shows columns that can be chosen.
    """
    add_filter(parser)
    parser.add_argument(
        "--sort", metavar="FIELDS", help="for instance -result.test_accuracy; default -start_time"
    )
    shown = "all" if limit is None else limit
    parser.add_argument(
        "--limit", type=int, default=limit, help=f"at most so many runs; default {shown}"
    )
    parser.add_argument("--offset", type=int, default=0, help="leave out the first so many runs")
    if columns:
        parser.add_argument(
            "--columns", metavar="FIELDS", help="for instance id,config.lr,result.loss"
        )


def add_named(parser: argparse.ArgumentParser) -> None:
    """Let a command name runs, or else select them.

    Args:
        parser: Its parser.
    """
    parser.add_argument("ids", metavar="ID", nargs="*", help="the runs; else those selected")
    add_selection(parser, columns=False)


def names_of(given: str) -> list[str]:
    """Take names apart that were given with commas.

    Args:
        given: Such as ``id,config.lr``.

    Returns:
        The names.
    """
    return [name.strip() for name in given.split(",") if name.strip()]


def selected_runs(options: argparse.Namespace, database: Database) -> RunSet:
    """Find the runs that the options of a command select.

    Args:
        options: The command line.
        database: The database.

    Returns:
        The selection, newest first where nothing else is asked for.
    """
    runs = database.find(options.where, options.experiment)
    runs = runs.sort(*(names_of(options.sort) if options.sort else ["-start_time"]))
    runs = runs.skip(options.offset)
    return runs.limit(options.limit) if options.limit is not None else runs


def named_runs(options: argparse.Namespace, database: Database) -> list[Run]:
    """Find the runs that the command line names, or else selects.

    Args:
        options: The command line.
        database: The database.

    Returns:
        The runs.
    """
    if options.ids:
        return [database[one] for one in options.ids]
    selected = selected_runs(options, database)
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
