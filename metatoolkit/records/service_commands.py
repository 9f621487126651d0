"""What `metatoolkit db ...` and `metatoolkit records ...` do."""

from __future__ import annotations

import argparse
import importlib.metadata
import os

from metatoolkit.errors import MetatoolkitError
from metatoolkit.records.address import URI_VARIABLE, database_errors, open_client, resolve
from metatoolkit.records.clean import redact
from metatoolkit.records.display import print_pairs
from metatoolkit.records.home import data_home
from metatoolkit.records.replay import BAD, sync
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import spool_directory, spooled_runs


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


def sync_spool(options: argparse.Namespace) -> int:
    """Push what is spooled.

    Args:
        options: The command line.

    Returns:
        0, or 1 if a run could not be pushed.
    """
    report = sync()
    if report.pushed:
        print(f"pushed: {', '.join(str(one) for one in report.pushed)}")
    for path in report.live:
        print(f"still running: {path}")
    for path, reason in report.failed.items():
        print(f"failed: {path}: {redact(reason)}")
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
        address = resolve(start=False)
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


def _tell_about_uri() -> None:
    given = os.environ.get(URI_VARIABLE)
    if given:
        print(f"{URI_VARIABLE} is set: runs go to {redact(given)}, not to the managed server")
