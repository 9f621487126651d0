"""Asking the experiment database: ``records.connect().find(...)``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, QueryError, RecordsError, UnknownNameError
from metatoolkit.records.address import (
    Address,
    NoServerError,
    database_errors,
    open_client,
    open_database,
)
from metatoolkit.records.clean import clean_text, decode_key
from metatoolkit.records.expressions import Query, parse, value_field
from metatoolkit.records.fields import (
    FIELDS,
    Expected,
    Field,
    comparison,
    did_you_mean,
    flatten,
    is_kind,
    kind_of,
    lookup,
    nearest,
)
from metatoolkit.records.run import Run
from metatoolkit.records.selection import RunSet, complete
from metatoolkit.records.server import find_server
from metatoolkit.records.spool import spooled_runs
from metatoolkit.records.stores import MongoStore, SpoolStore, Store
from metatoolkit.records.syncing import sync_beside
from metatoolkit.records.terminal import say, text

LONGEST_NUMBER = 19
SYNC_SECONDS = 2.0
STATUSES = "QUEUED RUNNING COMPLETED INTERRUPTED TIMEOUT FAILED PROBABLY_DEAD".split()
# So many values are listed where none is near, each of so many characters.
FEW, SHORT = 8, 30
_KIND_WORDS = {"number": "a number", "text": "text", "boolean": "true or false,"}


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
        say(f"{error}; the spool alone holds the runs")
        return Database([SpoolStore(directory)], None, None)
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
    return Database(stores, address, client.close)


@contextmanager
def looked_up(runs: Iterable[Any]) -> Iterator[list[Run]]:
    """Look up runs by their ids, as long as it takes to do something with them."""
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
        address: The address of the database among them, or None.
        close: Ends the connection to it, or None.
    """

    def __init__(
        self, stores: list[Store], address: Address | None, close: Callable[[], None] | None
    ) -> None:
        self.stores = stores
        self.address = address
        self._close = close

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._close is not None:
            self._close()

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
        return RunSet(self, query)

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
        numbers = {i: v for i, v in enumerate(values) if isinstance(v, int | float) and v == v}
        if not numbers:
            self.check_fields([field])
            told = f"none of the {len(values)} selected runs has a number at {field.name}"
            if not values:
                hint = runs.hint()
                told = f"no runs match: {hint}" if hint is not None else "no runs match"
                told = told if where or experiment is not None else "there are no runs yet"
            raise RecordsError(told)
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
        given = clean_text(str(key))
        queries = [Query().where("id", given if isinstance(key, str) else key)]
        if given.isascii() and given.isdigit() and len(given) < LONGEST_NUMBER:
            queries.append(Query().where("id", int(given)))
        if len(given) >= 4 and all(letter in "0123456789abcdef" for letter in given):
            queries.append(parse(f"startswith(uuid, '{given}')"))
        for query in queries:
            found = RunSet(self, query).select()
            if len(found) == 1:
                return RunSet(self, query).fetch(found)[0]
            if found:
                raise QueryError(f"{len(found)} runs have an id that begins with {given!r}")
        everything = RunSet(self, Query())
        for one in everything.select():
            # Ids of other kinds, which Sacred or somebody else has given, as they are shown.
            if text(one[1]["_id"]) == given:
                return everything.fetch([one])[0]
        raise QueryError(f"there is no run {given!r}; `metatoolkit runs list` shows the runs")

    def check_fields(self, fields: Iterable[Field]) -> None:
        """Tell misspelled fields from those that merely have no value where they were asked for.

        Args:
            fields: Fields that were asked for in vain.

        Raises:
            QueryError: A field occurs in no run at all, while others of its kind do.
            UnknownNameError: No run has the metric.
        """
        for field in fields:
            root, deep = FIELDS[field.root]
            # Of a metric, which values it has is known.
            path = ".".join(field.path.split(".")[:2]) if field.root == "metrics" else field.path
            if not deep or path == root or any(True for _ in self._values(path)):
                continue
            if field.root == "metrics":
                known = {name for store in self.stores for name in store.metric_names()}
                metric = decode_key(path.partition(".")[2])
                if known and metric not in known:
                    raise UnknownNameError("metric", metric, known)
                continue
            every = [one for store in self.stores for one in [*store.headers({}, [root])][-200:]]
            names = {name for header in every for name in flatten(header.get(root))}
            told = sorted(f"{field.root}.{decode_key(name)}" for name in names)
            if told:
                near = did_you_mean(field.name, told, 0.5)
                hint = near or f". There are: {', '.join(told[:20])}"
                raise QueryError(f"no run has the field {field.name}{hint}")

    def kind_hint(self, expected: Expected) -> str | None:
        """Say what runs have where a comparison expects another kind of value, if none has it."""
        field, other = expected.field, None
        # Values of metrics are numbers, whatever was asked for.
        for value in self._values(field.path) if field.root != "metrics" else ():
            if is_kind(value, expected.kind):
                return None
            entries = value if isinstance(value, list) else [value]
            other = next((one for one in [other, *entries] if one is not None), None)
        if other is None:
            self.check_fields([field])
        kind = _KIND_WORDS.get(kind_of(other))
        return kind and f"{field.name} is {kind} such as {other!r}: compare it with one"

    def value_hint(self, query: Query) -> str | None:
        """Name a comparison that no run can fulfill, and what was meant or what there is."""
        for field, symbol, wanted in query.equal:
            present = list(STATUSES) if field.root == "status" else []
            good = list(present)
            for store in self.stores:
                for header in store.headers({}, [field.path, "status"]):
                    found = lookup(header, field.path)
                    present += found
                    # A misspelled setting is what a run may have failed of.
                    good += found if header.get("status") != "FAILED" else []
            holds = comparison("value", symbol, wanted)
            if not present or any(holds({"value": one}) for one in present):
                continue
            told = f"no run has {field.name} {'in' if symbol == '$in' else '=='} {wanted!r}"
            choices, trusted = _distinct(present), _distinct(good)
            near = _meant(wanted if symbol == "$in" else [wanted], trusted or choices)
            if near is not None:
                return f"{told}; did you mean {near!r}?"
            if len(choices) <= FEW and all(len(repr(one)) <= SHORT for one in choices):
                only = [repr(one) for one in choices if one not in trusted] if trusted else []
                failed = f" ({', '.join(only)} in failed runs only)" if only else ""
                return f"{told}; there are: {', '.join(map(repr, choices))}{failed}"
        return None

    def _values(self, path: str) -> Iterator[Any]:
        root = path.partition(".")[0]
        having = {} if root in ("summary", "reason") else {root: {"$exists": True}}
        for store in self.stores:
            for header in store.headers(having, [path]):
                yield from lookup(header, path)


def _distinct(values: list[Any]) -> list[Any]:
    entries = [one for value in values for one in (value if isinstance(value, list) else [value])]
    plain = {(type(one), one): one for one in entries if isinstance(one, str | int | float)}
    return sorted(plain.values(), key=lambda one: (isinstance(one, str), one))


def _meant(given: list[Any], choices: list[Any]) -> Any | None:
    """Find what was meant: written in other letters, as a number instead of text, or misspelled."""
    by_text = {str(one).casefold(): one for one in choices}
    # Numbers that look alike are as different as any.
    words = [word for word, choice in by_text.items() if isinstance(choice, str)]
    for one in given:
        same = str(one).casefold()
        for word in (same, nearest(same, words) if isinstance(one, str) else None):
            if word in by_text:
                return by_text[word]
    return None
