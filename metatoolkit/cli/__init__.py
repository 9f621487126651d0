"""The command `metatoolkit`: run applications, ask for runs, manage the database."""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Sequence

from metatoolkit.cli import (
    applications,
    edit,
    estimators,
    export,
    profile,
    rerun,
    runs,
    service,
    show,
    sweep,
    tail,
)
from metatoolkit.errors import optional_import
from metatoolkit.records.terminal import answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; by default those of the process.

    Returns:
        The exit code: 0, 1 where the answer is no, 2 for an error, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return answer(lambda: _carry_out(words))
    finally:
        if arguments is None:
            _leave_at_once()


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        prog="metatoolkit",
        description="Run meta-learning applications and ask for their recorded runs.",
        epilog="Records and checkpoints lie in the user's data directory; METATOOLKIT_HOME moves "
        "them, and leaves data sets where they are: METATOOLKIT_DATA moves those. "
        "METATOOLKIT_MONGO_URI names a MongoDB server to use instead of the managed one.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    applications.add(commands)
    sweep.add(commands)
    profile.add(commands)
    estimators.add(commands)
    asking = commands.add_parser("runs", help="ask for recorded runs")
    about_runs = asking.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (runs, show, export, edit, tail, rerun):
        group.add(about_runs)
    service.add(commands)
    return parser


def _carry_out(words: list[str]) -> int:
    options = build_parser().parse_args(_joined(words))
    with optional_import("this command"):
        code: int = options.handler(options)
    return code


def _leave_at_once() -> None:
    """Keep pymongo from waiting half a second at exit for threads that sleep, and are daemons."""
    waiting = getattr(sys.modules.get("pymongo.synchronous.monitor"), "_shutdown_resources", None)
    if waiting is not None:
        atexit.unregister(waiting)


def _joined(arguments: list[str]) -> list[str]:
    """Write as options what argparse would not take for one, or for another one.

    `--sort -result.accuracy` becomes one word, and the `with` of a sweep or a profile `--with`.
    """
    if arguments[:1] in (["sweep"], ["profile"]):
        return ["--with" if word == "with" else word for word in arguments]
    if "--sort" not in arguments[:-1] or arguments[:1] == ["run"]:
        return arguments
    place = arguments.index("--sort")
    return [*arguments[:place], f"--sort={arguments[place + 1]}", *arguments[place + 2 :]]
