"""The command `metatoolkit`: run applications, ask for runs, manage the database."""

from __future__ import annotations

import argparse
import atexit
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from metatoolkit.experiments.applications import applications, load_application
from metatoolkit.terminal import answer

EXPRESSIONS = """\
expressions:
  config.method == 'evograd' and result.test_accuracy > 0.8
  status in ['FAILED', 'INTERRUPTED'] and start_time > '2 days'
  metrics['valid_loss'].min < 0.3 and 'paper' in tags
  matches(experiment, '^label') and not exists(config.sigma)
"""
_SERVICE = "metatoolkit.records.service_commands"
_RUNS = "metatoolkit.records.commands"
_SHOW = "metatoolkit.records.show_commands"
_EDITS = "metatoolkit.records.edit_commands"
_RERUN = "metatoolkit.records.rerun"


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


def _carry_out(words: list[str]) -> int:
    options = build_parser().parse_args(_joined(words))
    if options.handler == "run":
        return run_application(options.application, options.arguments)
    module, _, name = options.handler.rpartition(":")
    code: int = getattr(importlib.import_module(module), name)(options)
    return code


def _leave_at_once() -> None:
    """Keep pymongo from waiting half a second at exit for threads that sleep, and are daemons."""
    waiting = getattr(sys.modules.get("pymongo.synchronous.monitor"), "_shutdown_resources", None)
    if waiting is not None:
        atexit.unregister(waiting)


def _joined(arguments: list[str]) -> list[str]:
    """Write `--sort -result.accuracy` in one word, or argparse takes the field for an option."""
    if "--sort" not in arguments[:-1] or arguments[:1] == ["run"]:
        return arguments
    place = arguments.index("--sort")
    return [*arguments[:place], f"--sort={arguments[place + 1]}", *arguments[place + 2 :]]


def run_application(name: str, arguments: Sequence[str]) -> int:
    """Run a Sacred experiment out of the package ``applications``.

    Args:
        name: The application's name.
        arguments: What Sacred's command line takes, such as ``with seed=3``.

    Returns:
        The exit code.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: It does not follow the rules for applications.
    """
    load_application(name).run_commandline([f"metatoolkit run {name}", *arguments])
    return 0


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
    run = commands.add_parser(
        "run",
        help="run an application",
        description="Run an application; what follows its name is Sacred's command line.",
        epilog="example: metatoolkit run label_noise with method=evograd seed=3",
    )
    run.add_argument("application", help=f"one of: {', '.join(applications()) or 'none found'}")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="for instance: with seed=3")
    run.set_defaults(handler="run")
    _command(
        commands,
        "estimators",
        "list all hypergradient estimators with what each assumes and costs",
        "metatoolkit.hypergradients.listing:list_estimators",
    )
    _add_runs(commands.add_parser("runs", help="ask for recorded runs"))
    _add_database(commands.add_parser("db", help="start, stop or look at the managed server"))
    _add_records(commands.add_parser("records", help="replay spooled runs, find what is wrong"))
    return parser


def _add_runs(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = _command(commands, "list", "print a table of runs", f"{_RUNS}:list_runs")
    _add_selection(listing, limit=30)
    _add_json(listing)
    show = _command(commands, "show", "print everything about a run", f"{_SHOW}:show_run")
    show.add_argument("id", metavar="ID", help="the run's id, or the beginning of its uuid")
    show.add_argument("--output", action="store_true", help="also what the run printed")
    _add_json(show)
    comparing = _command(commands, "compare", "print what differs", f"{_RUNS}:compare_runs")
    comparing.add_argument("ids", metavar="ID", nargs="+", help="the runs")
    _add_json(comparing)
    plot = _command(commands, "plot", "draw a metric's curves", f"{_RUNS}:plot_runs")
    _add_named(plot)
    plot.add_argument("--metric", required=True, help="the metric's name")
    plot.add_argument("--output", required=True, help="a png, pdf or svg file")
    plot.add_argument("--over", metavar="ENTRIES", help="average over these, such as seed")
    plot.add_argument("--log-x", action="store_true", help="logarithmic steps")
    plot.add_argument("--log-y", action="store_true", help="logarithmic values")
    export = _command(
        commands,
        "export",
        "write a table of runs",
        "metatoolkit.records.export_commands:export_runs",
    )
    _add_selection(export, limit=None)
    export.add_argument("--metric", help="one row per value of this metric, instead of per run")
    export.add_argument(
        "--format", choices=("csv", "parquet", "latex", "json"),
        help="default: what the file's ending says, else csv",
    )  # fmt: skip
    export.add_argument("--output", help="a file; by default the terminal")
    for name, what in (("artifacts", "files that it made"), ("sources", "the program's files")):
        files = _command(commands, name, f"list or save {what}", f"{_SHOW}:{name}_of")
        files.add_argument("id", metavar="ID", help="the run")
        files.add_argument("name", nargs="*", help="only these")
        files.add_argument("--save", metavar="DIR", help="write them into this directory")
    _add_answers(commands)
    _add_edits(commands)


def _add_answers(commands: Any) -> None:
    best = _command(commands, "best", "print which run is best", f"{_RUNS}:best_run")
    group = _command(
        commands, "group", "print mean and interval over seeds, say", f"{_RUNS}:group_runs"
    )
    for one in (best, group):
        one.add_argument("what", help="a field such as result.test_accuracy, or a metric's name")
        one.add_argument("--experiment", help="only runs of this experiment")
        one.add_argument("--where", metavar="EXPRESSION", help="only runs for which this holds")
        one.add_argument(
            "--at",
            metavar="POINT",
            default="last",
            help="which value of a metric: last, min, max, or a step; default last",
        )
        one.epilog = EXPRESSIONS
        _add_json(one)
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
    report = _command(
        commands, "report", "write runs as one self-contained page", f"{_RUNS}:report_runs"
    )
    _add_named(report)
    report.add_argument("--output", default="report.html", help="default report.html")
    report.add_argument("--title", default="Runs", help="what the page is called")


def _add_edits(commands: Any) -> None:
    tag = _command(commands, "tag", "put tags on runs", f"{_EDITS}:tag_runs")
    tag.add_argument("tag", help="a tag, or several with commas between them")
    tag.add_argument("ids", metavar="ID", nargs="+", help="the runs")
    tag.add_argument("--remove", action="store_true", help="take them off")
    note = _command(commands, "note", "print or replace notes", f"{_EDITS}:note_run")
    note.add_argument("id", metavar="ID", help="the run")
    note.add_argument("text", nargs="?", help="the new notes; without, they are printed")
    remove = _command(commands, "rm", "delete runs, after asking", f"{_EDITS}:remove_runs")
    remove.add_argument("ids", metavar="ID", nargs="*", help="the runs")
    remove.add_argument("--where", metavar="EXPRESSION", help="all runs for which this holds")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    tail = _command(commands, "tail", "follow a run that goes on", f"{_EDITS}:tail_run")
    tail.add_argument("id", metavar="ID", nargs="?", help="the run; default the newest that runs")
    tail.add_argument("--metric", action="append", help="only this metric; may be repeated")
    tail.add_argument("--quiet", action="store_true", help="metrics only, not what it prints")
    rerun = _command(commands, "rerun", "run again with the same configuration", f"{_RERUN}:rerun")
    rerun.add_argument("id", metavar="ID", help="the run")
    rerun.add_argument("--script", help="what to start, where it is not an application")
    rerun.add_argument(
        "--with", nargs="+", default=[], metavar="UPDATE", dest="updates",
        help="what to change, for instance seed=4",
    )  # fmt: skip


def _add_named(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="the runs; else those selected")
    _add_selection(parser, limit=None, columns=False)


def _add_database(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    start = _command(commands, "start", "start the server", f"{_SERVICE}:start_server")
    start.add_argument(
        "--port", type=int, help="listen on this loopback port instead of a private socket"
    )
    _command(commands, "stop", "stop the server", f"{_SERVICE}:stop_server")
    _command(commands, "status", "say whether it runs, and where", f"{_SERVICE}:server_status")


def _add_records(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "sync", "push spooled runs to the database", f"{_SERVICE}:sync_spool")
    _command(commands, "doctor", "say what is wrong", f"{_SERVICE}:doctor")
    bring = _command(
        commands, "import", "bring runs of a FileStorageObserver in", f"{_SERVICE}:import_records"
    )
    bring.add_argument("folder", help="the observer's folder, or that of one run")
    copy = _command(commands, "copy", "copy all runs to a server", f"{_SERVICE}:copy_records")
    copy.add_argument(
        "--to", metavar="URI", required=True, help="a connection string, or a variable holding one"
    )
    _command(
        commands, "omniboard", "print the command that starts Omniboard", f"{_SERVICE}:omniboard"
    )


def _command(commands: Any, name: str, purpose: str, handler: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")


def _add_selection(
    parser: argparse.ArgumentParser, limit: int | None, columns: bool = True
) -> None:
    parser.epilog = EXPRESSIONS
    parser.add_argument("--experiment", help="only runs of this experiment")
    parser.add_argument("--where", metavar="EXPRESSION", help="only runs for which this holds")
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


if __name__ == "__main__":
    sys.exit(main())
