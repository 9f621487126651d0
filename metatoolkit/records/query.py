"""Asking the experiment database: ``records.connect().find(...)``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, QueryError, RecordsError
from metatoolkit.records.address import (
    Address,
    NoServerError,
    database_errors,
    open_client,
    open_database,
)
from metatoolkit.records.clean import clean_text
from metatoolkit.records.expressions import Query, parse, value_field
from metatoolkit.records.fields import lookup
from metatoolkit.records.hints import check_fields
from metatoolkit.records.run import Run
from metatoolkit.records.selection import RunSet, complete, nothing_found
from metatoolkit.records.server import find_server
from metatoolkit.records.spool import spooled_runs
from metatoolkit.records.stores import MongoStore, SpoolStore, Store
from metatoolkit.records.syncing import sync_beside
from metatoolkit.records.terminal import say
from metatoolkit.records.terminal import text as shown

if TYPE_CHECKING:
    from pymongo import MongoClient

LONGEST_NUMBER = 19
SYNC_SECONDS = 2.0


def connect(uri: str | None = None, home: str | os.PathLike[str] | None = None) -> Database:
    """Open the experiment database for queries.

    What ended without a database is brought into it beside, and gets two seconds for that; until it
    is there, a run is shown as far as it is in the database, or else from the spool. Where no
    server is configured and no ``mongod`` installed, the runs in the spool are queried themselves.

    Args:
        uri: A MongoDB connection string; by default ``METATOOLKIT_MONGO_URI``, else the managed
            server, which is started at need.
        home: The data directory; by default the user's own.

    Returns:
        The database.

    Raises:
        DatabaseUnavailableError: The server does not answer.
    """
    directory = Path(home).absolute() if home is not None else None
    try:
        address = find_server(directory, uri)
    except NoServerError as error:
        store = SpoolStore(directory)
        say(f"{error}; the spool alone holds the runs")
        return Database([store], None, None)
    client = open_client(address)
    try:
        database = open_database(client)
        with database_errors(address):
            database.command("ping")
        sync_beside(directory, address.uri, SYNC_SECONDS)
        uuids = [one.uuid for one in spooled_runs(directory)]
        with database_errors(address):
            found = database["runs"].distinct("run_uuid", {"run_uuid": {"$in": uuids}})
        known = {one for one in found if isinstance(one, str)}
    except RecordsError:
        client.close()
        raise
    stores: list[Store] = [MongoStore(database, address, directory)]
    if len(known) < len(uuids):
        stores.append(SpoolStore(directory, frozenset(known)))
    return Database(stores, client, address)


@contextmanager
def looked_up(runs: Iterable[Any]) -> Iterator[list[Run]]:
    """Look up runs by their ids, as long as it takes to do something with them.

    Args:
        runs: Runs, or their ids.

    Yields:
        The runs.

    Raises:
        QueryError: There is no such run.
    """
    given = list(runs)
    if all(isinstance(one, Run) for one in given):
        yield given
        return
    with connect() as database:
        yield [one if isinstance(one, Run) else database[one] for one in given]


class Database:
    """The runs that can be asked for.

    Args:
        stores: Where they are.
        client: The connection, or None.
        address: Its address, or None.
    """

    def __init__(
        self,
        stores: list[Store],
        client: MongoClient[dict[str, Any]] | None,
        address: Address | None,
    ) -> None:
        self.stores = stores
        self.address = address
        self._client = client

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    def find(self, expression: str | None = None, experiment: str | None = None) -> RunSet:
        """Select runs.

        Args:
            expression: For instance ``"config.method == 'evograd' and result.accuracy > 0.8"``;
                everything by default.
            experiment: An experiment's name.

        Returns:
            A lazy set of runs.

        Raises:
            QueryError: The expression is not understood.
        """
        query = parse(expression)
        if experiment is not None:
            query = query.where("experiment", clean_text(experiment))
        return RunSet(self.stores, query)

    def latest(self, count: int = 1) -> RunSet:
        """Select the runs that started last.

        Args:
            count: How many.

        Returns:
            A lazy set of runs, newest first.
        """
        return self.find().sort("-start_time").limit(count)

    def best(
        self,
        what: str,
        experiment: str | None = None,
        where: str | None = None,
        mode: str = "max",
        at: str | int = "last",
    ) -> Run:
        """Find the run that is best in a result or in a metric.

        Args:
            what: A field such as ``result.test_accuracy``, or a metric's name.
            experiment: An experiment's name.
            where: A query expression.
            mode: Whether ``max`` or ``min`` is best.
            at: Which value of a metric counts: ``last``, ``min``, ``max``, or the one at a step.

        Returns:
            The run.

        Raises:
            ConfigurationError: ``mode`` or ``at`` is something else.
            RecordsError: No run has a number there.
            QueryError: No such field, or no run has it.
            UnknownNameError: No run has the metric.
        """
        if mode not in ("max", "min"):
            raise ConfigurationError(f"mode is 'max' or 'min', not {mode!r}")
        field = value_field(what, at)
        runs = self.find(where, experiment)
        chosen = runs.select(field)
        values = [next(iter(lookup(document, field.path)), None) for _, document in chosen]
        numbers = {
            place: value
            for place, value in enumerate(values)
            if isinstance(value, int | float) and value == value
        }
        if not numbers:
            check_fields(self.stores, [field])
            if not values:
                narrowed = where or experiment is not None
                raise RecordsError(nothing_found(runs) if narrowed else "there are no runs yet")
            raise RecordsError(
                f"none of the {len(values)} selected runs has a number at {field.name}"
            )
        place = (max if mode == "max" else min)(numbers, key=numbers.__getitem__)
        found = runs.fetch([chosen[place]])
        complete(found, [field])
        return found[0]

    def __getitem__(self, key: Any) -> Run:
        """Find one run by its id, by the beginning of its uuid, or as ``"latest"``."""
        if key == "latest":
            for run in self.latest():
                return run
            raise QueryError("there are no runs yet")
        text = clean_text(str(key))
        queries = [Query().where("id", text if isinstance(key, str) else key)]
        if text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER:
            queries.append(Query().where("id", int(text)))
        if len(text) >= 4 and all(letter in "0123456789abcdef" for letter in text):
            queries.append(parse(f"startswith(uuid, '{text}')"))
        for query in queries:
            found = RunSet(self.stores, query).select()
            if len(found) == 1:
                return RunSet(self.stores, query).fetch(found)[0]
            if found:
                raise QueryError(f"{len(found)} runs have an id that begins with {text!r}")
        everything = RunSet(self.stores, Query())
        for one in everything.select():
            # Ids of other kinds, which Sacred or somebody else has given, as they are shown.
            if shown(one[1]["_id"]) == text:
                return everything.fetch([one])[0]
        raise QueryError(f"there is no run {text!r}; `metatoolkit runs list` shows the runs")
