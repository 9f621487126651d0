"""What `metatoolkit db ...` and `metatoolkit records ...` do."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from typing import Any
from urllib.parse import quote

from metatoolkit.cli.arguments import command
from metatoolkit.cli.display import print_pairs
from metatoolkit.errors import ConfigurationError, MetatoolkitError
from metatoolkit.records.address import (
    URI_VARIABLE,
    Address,
    database_errors,
    open_client,
    open_database,
)
from metatoolkit.records.edits import import_folder
from metatoolkit.records.home import data_home
from metatoolkit.records.server import ManagedServer, find_server
from metatoolkit.records.spool import spool_directory, spooled_runs
from metatoolkit.records.syncing import BAD, sync, sync_databases
from metatoolkit.records.terminal import redact, say, text

# Omniboard listens on every interface, without a password; this keeps it on this machine.
LOOPBACK_ONLY = (
    'import net from "node:net";const l=net.Server.prototype.listen;'
    "net.Server.prototype.listen=function(p,...a){return "
    'typeof p==="object"||typeof a[0]==="string"?l.call(this,p,...a)'
    ':l.call(this,p,"127.0.0.1",...a)}'
)


def add(commands: Any) -> None:
    """Describe the commands.

    Args:
        commands: Where they go.
    """
    database = commands.add_parser("db", help="start, stop or look at the managed server")
    about_server = database.add_subparsers(title="commands", required=True, metavar="COMMAND")
    start = command(about_server, "start", "start the server", start_server)
    start.add_argument(
        "--port", type=int, help="listen on this loopback port instead of a private socket"
    )
    command(about_server, "stop", "stop the server", stop_server)
    command(about_server, "status", "say whether it runs, and where", server_status)
    records = commands.add_parser("records", help="sync runs, find what is wrong")
    about_spool = records.add_subparsers(title="commands", required=True, metavar="COMMAND")
    told = "push spooled runs to the database, or bring all runs to another one"
    syncing = command(about_spool, "sync", told, sync_runs)
    syncing.add_argument(
        "--to",
        metavar="URI",
        help="the other server: a connection string, or a variable holding one",
    )
    command(about_spool, "doctor", "say what is wrong", doctor)
    bring = command(about_spool, "import", "bring runs of a FileStorageObserver in", import_records)
    bring.add_argument("folder", help="the observer's folder, or that of one run")
    # The former name of `sync --to`; without help it is not listed.
    former = about_spool.add_parser("copy")
    former.add_argument("--to", metavar="URI", required=True)
    former.set_defaults(handler=_copy)
    command(about_spool, "omniboard", "print the command that starts Omniboard", omniboard)


def start_server(options: argparse.Namespace) -> int:
    """Start the managed server.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    _tell_about_uri()
    print(ManagedServer().start(options.port))
    return 0


def stop_server(options: argparse.Namespace) -> int:
    """Stop the managed server.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    print("stopped" if ManagedServer().stop() else "was not running")
    return 0


def server_status(options: argparse.Namespace) -> int:
    """Print how the managed server is.

    Args:
        options: The command line.

    Returns:
        0 if it runs and answers, else 1.
    """
    _tell_about_uri()
    status = ManagedServer().status()
    state = "running" if status["answers"] else "not answering" if status["running"] else "stopped"
    pairs = [("server", state), ("pid", status["pid"]), ("address", status["uri"])]
    pairs += [("data", status["data"]), ("log", status["log"]), ("program", status["program"])]
    print_pairs([(name, value) for name, value in pairs if value])
    return 0 if status["answers"] else 1


def sync_runs(options: argparse.Namespace) -> int:
    """Push what is spooled, or bring all runs to another server.

    Args:
        options: The command line.

    Returns:
        0, or 1 if a run could not be pushed.

    Raises:
        ConfigurationError: ``--to`` names no server, or the source.
    """
    if options.to is not None:
        return _sync_databases(options.to)
    report = sync()
    if report.pushed:
        print(f"pushed: {', '.join(str(one) for one in report.pushed)}")
    for path in report.live:
        print(f"still running: {path}")
    for path, reason in report.failed.items():
        print(f"failed: {path}: {text(redact(reason))}")
    if not (report.pushed or report.live or report.failed):
        print("nothing is spooled")
    return 1 if report.failed else 0


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong, or that nothing is.

    Args:
        options: The command line.

    Returns:
        0 if runs can be recorded to a database, else 1.
    """
    pairs: list[tuple[str, object]] = [("data directory", str(data_home()))]
    healthy = True
    try:
        address = find_server(start=False)
        with open_client(address) as client, database_errors(address):
            version = client.server_info()["version"]
        pairs.append(("server", f"MongoDB {version} at {address}"))
    except MetatoolkitError as error:
        healthy = False
        pairs.append(("server", str(error)))
    waiting = list(spooled_runs())
    bad = spool_directory() / BAD
    pairs.append(("spooled runs", len(waiting)))
    if bad.is_dir():
        healthy = False
        pairs.append(("set aside", f"{len(list(bad.iterdir()))} in {bad}"))
    for package in ("sacred", "pymongo", "setuptools"):
        try:
            pairs.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            pairs.append((package, "not installed"))
    print_pairs(pairs)
    return 0 if healthy else 1


def import_records(options: argparse.Namespace) -> int:
    """Bring runs of a FileStorageObserver into the database.

    Args:
        options: The command line.

    Returns:
        0, or 1 if a folder could not be read.
    """
    done = import_folder(options.folder)
    for place, reason in sync().failed.items():
        say(f"{place} stays in the spool: {reason}")
    print(f"imported: {len(done.added)} runs; there already: {len(done.present)}")
    for path in done.live:
        print(f"still running: {text(path)}")
    for path, reason in done.failed.items():
        print(f"not read: {text(path)}: {text(reason)}")
    return 1 if done.failed else 0


def _copy(options: argparse.Namespace) -> int:
    say("`records copy --to` is called `records sync --to` now")
    return _sync_databases(options.to)


def _sync_databases(given: str) -> int:
    target = Address(given if "://" in given else os.environ.get(given, ""), managed=False)
    if not target.uri:
        raise ConfigurationError(
            f"--to takes a connection string or the name of a variable that holds one, not "
            f"{redact(given)!r}"
        )
    # With the variable set already, the source is what the managed server still holds.
    configured = os.environ.get(URI_VARIABLE)
    managed = not configured or configured == target.uri
    source = Address(ManagedServer().start(), managed=True) if managed else find_server()
    if managed:
        sync(uri=source.uri)
    if source.uri == target.uri:
        raise ConfigurationError(f"source and target are the same: {target}")
    print(f"from {source}\nto   {target}")
    with open_client(source) as one, open_client(target) as other:
        with database_errors(target):
            other.admin.command("ping")
            done = sync_databases(open_database(one), open_database(other), _progress)
    moved = [f"{one} -> {other}" for one, other in done.runs.items() if one != other]
    print(
        f"{len(done.runs)} runs with {done.values:,} metric values, {done.files} new files: "
        "written and read back"
    )
    if moved:
        print(f"numbers that were taken there: {text(', '.join(moved))}")
    for run in done.live:
        print(f"run {text(run)} still goes on: sync again once it has ended")
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total}", end=end, file=sys.stderr, flush=True)


def omniboard(options: argparse.Namespace) -> int:
    """Print the command that starts Omniboard on the database that runs are recorded to.

    Args:
        options: The command line.

    Returns:
        The exit code.
    """
    if os.environ.get(URI_VARIABLE):
        # The variable, not what it holds: that may be a password.
        uri = f'"${URI_VARIABLE}"'
    else:
        uri = f"'{ManagedServer().start()}'"
    option = f"--import=data:text/javascript,{quote(LOOPBACK_ONLY, safe='/:;=().,')}"
    print(f"NODE_OPTIONS='{option}' npx --yes omniboard@2.16.1 --mu {uri}")
    print("then open http://127.0.0.1:9000 (PORT=... chooses another one)", file=sys.stderr)
    return 0


def _tell_about_uri() -> None:
    given = os.environ.get(URI_VARIABLE)
    if given:
        print(f"{URI_VARIABLE} is set: runs go to {redact(given)}, not to the managed server")
