"""Which MongoDB server is used, in which order, and how it is connected to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from metatoolkit.errors import DatabaseUnavailableError
from metatoolkit.records.redaction import redact

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

URI_VARIABLE = "METATOOLKIT_MONGO_URI"
DATABASE = "metatoolkit"
SELECTION_SECONDS = 2.0
SOCKET_SECONDS = 10.0


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


def open_client(address: Address) -> MongoClient[dict[str, Any]]:
    """Open a client with short limits, so that a dead server is noticed in seconds.

    Args:
        address: Where the server is.

    Returns:
        A client, not yet connected.

    Raises:
        DatabaseUnavailableError: The connection string is malformed.
    """
    import pymongo
    from pymongo.errors import ConfigurationError, InvalidURI

    limits = {
        "serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000),
        "connectTimeoutMS": int(SELECTION_SECONDS * 1000),
        "socketTimeoutMS": int(SOCKET_SECONDS * 1000),
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
    except ConnectionFailure as error:
        raise DatabaseUnavailableError(
            f"no MongoDB server answers at {address} ({_first_line(error)}). "
            + (
                "Start it with `metatoolkit db start`."
                if address.managed
                else f"Start it, or unset {URI_VARIABLE} to use the managed one."
            )
        ) from error
    except OperationFailure as error:
        raise DatabaseUnavailableError(
            f"the MongoDB server at {address} refuses: {_first_line(error)}"
        ) from error
    except PyMongoError as error:
        raise DatabaseUnavailableError(
            f"the MongoDB server at {address} fails: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    text = redact(str(error)).strip().splitlines()
    return text[0].partition(" (configured timeouts")[0][:200] if text else type(error).__name__
