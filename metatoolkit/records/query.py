"""Asking the experiment database: ``records.connect().find(...)``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    QueryError,
    RecordsError,
    UnknownNameError,
)
from metatoolkit.records.address import (
    Address,
    NoServerError,
    database_errors,
    open_client,
    open_database,
    resolve,
)
from metatoolkit.records.clean import clean_text, decode_key
from metatoolkit.records.expressions import Field, Query, parse, parse_field
from metatoolkit.records.fields import FIELDS, flatten, lookup
from metatoolkit.records.matching import matches, order
from metatoolkit.records.replay import sync_into
from metatoolkit.records.run import Run, status_of
from metatoolkit.records.spool import say
from metatoolkit.records.stores import MongoStore, SpoolStore, Store

if TYPE_CHECKING:
    import pandas
    from pymongo import MongoClient

POINTS = ("last", "min", "max")
LONGEST_NUMBER = 19
LIFE = ("status", "proc", "heartbeat", "start_time")


def connect(uri: str | None = None, home: str | os.PathLike[str] | None = None) -> Database:
    """Open the experiment database for queries.

    What ended without a database is brought into it first. Where no server is configured and no
    ``mongod`` installed, the runs in the spool are queried themselves.

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
        address = resolve(directory, uri)
    except NoServerError as error:
        store = SpoolStore(directory)
        say(f"{error}; the spool alone holds the runs")
        return Database([store], None, None)
    client = open_client(address)
    try:
        database = open_database(client)
        with database_errors(address):
            database.command("ping")
        sync_into(database, address, directory)
        uuids = [one.uuid for one in _spooled(directory)]
        with database_errors(address):
            known = database["runs"].distinct("run_uuid", {"run_uuid": {"$in": uuids}})
    except DatabaseUnavailableError:
        client.close()
        raise
    stores: list[Store] = [MongoStore(database, address)]
    if len(known) < len(uuids):
        stores.append(SpoolStore(directory, frozenset(known)))
    return Database(stores, client, address)


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
            experiment = clean_text(experiment)
            query.filter = {"$and": [query.filter, {"experiment.name": {"$eq": experiment}}]}
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
        at: str = "last",
    ) -> Run:
        """Find the run that is best in a result or in a metric.

        Args:
            what: A field such as ``result.test_accuracy``, or a metric's name.
            experiment: An experiment's name.
            where: A query expression.
            mode: Whether ``max`` or ``min`` is best.
            at: Which value of a metric counts: ``last``, ``min`` or ``max``.

        Returns:
            The run.

        Raises:
            ConfigurationError: ``mode`` or ``at`` is something else.
            RecordsError: No run has a number there.
            QueryError: No such field, or no run has it.
            UnknownNameError: No run has the metric.
        """
        if mode not in ("max", "min") or at not in POINTS:
            raise ConfigurationError(
                f"mode is 'max' or 'min' and at one of {POINTS}, not {mode!r} and {at!r}"
            )
        field = value_field(what, at)
        runs = self.find(where, experiment)
        values = runs.values(field)
        numbers = {
            key: value
            for key, value in values.items()
            if isinstance(value, int | float) and value == value
        }
        if not numbers:
            runs.check([field])
            if not values:
                chosen = where or experiment is not None
                raise RecordsError("no runs match" if chosen else "there are no runs yet")
            raise RecordsError(
                f"none of the {len(values)} selected runs has a number at {field.name}"
            )
        choose = max if mode == "max" else min
        position, run_id = choose(numbers, key=lambda key: numbers[key])
        return runs.fetch(position, [run_id])[0]

    def __getitem__(self, key: int | str) -> Run:
        """Find one run by its id, by the beginning of its uuid, or as ``"latest"``."""
        if key == "latest":
            for run in self.latest():
                return run
            raise QueryError("there are no runs yet")
        text = clean_text(str(key))
        conditions: list[dict[str, Any]] = [{"_id": text if isinstance(key, str) else key}]
        if text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER:
            conditions.append({"_id": int(text)})
        if len(text) >= 4 and all(letter in "0123456789abcdef" for letter in text):
            conditions.append({"run_uuid": {"$regex": f"^{text}"}})
        for condition in conditions:
            found = RunSet(self, Query(condition)).runs()
            if len(found) == 1:
                return found[0]
            if found:
                raise QueryError(f"{len(found)} runs have an id that begins with {text!r}")
        raise QueryError(f"there is no run {text!r}; `metatoolkit runs list` shows the runs")


class RunSet:
    """A selection of runs; nothing is read before it is asked for.

    Args:
        database: Where the runs are.
        query: Which ones.
    """

    def __init__(self, database: Database, query: Query) -> None:
        self._database = database
        self._query = query
        self._sort: list[tuple[Field, bool]] = []
        self._limit: int | None = None
        self._found: list[Run] | None = None

    def sort(self, *keys: str) -> RunSet:
        """Order the runs; those without the field come last.

        Args:
            keys: Fields, the first one the most important; ``-`` before it sorts downward.

        Returns:
            A new selection.

        Raises:
            QueryError: No such field.
        """
        made = self._copy()
        made._sort = [(parse_field(key.lstrip("-+")), key.startswith("-")) for key in keys]
        return made

    def limit(self, count: int) -> RunSet:
        """Keep the first runs only.

        Args:
            count: How many.

        Returns:
            A new selection.

        Raises:
            ConfigurationError: The count is negative.
        """
        if count < 0:
            raise ConfigurationError(f"a limit is 0 or more, not {count}")
        made = self._copy()
        made._limit = count
        return made

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs())

    def __len__(self) -> int:
        return len(self.runs())

    def __getitem__(self, position: int) -> Run:
        return self.runs()[position]

    def runs(self) -> list[Run]:
        """Read the selected runs.

        Returns:
            The runs, in order.

        Raises:
            QueryError: A field that the expression names occurs in no run at all.
        """
        if self._found is None:
            self._found = self._read()
        return self._found

    def table(self, columns: list[str] | None = None) -> pandas.DataFrame:
        """Read the runs into a table.

        Args:
            columns: Fields such as ``config.lr`` or ``metrics['val.loss'].min``; by default id,
                experiment, status, times, the whole configuration and the whole result.

        Returns:
            One row per run.

        Raises:
            QueryError: No such field.
        """
        from metatoolkit.records.table import table

        if columns is not None:
            self.fields(columns)
        return table(self.runs(), columns)

    def fields(self, names: Sequence[str]) -> list[Field]:
        """Read the names of fields of these runs.

        Args:
            names: The names.

        Returns:
            The fields.

        Raises:
            QueryError: No such field, or none of these runs nor any other one has it.
            UnknownNameError: No run has the metric.
        """
        found = [parse_field(name) for name in names]
        runs = self.runs()
        self.check([one for one in found if not any(lookup(r.document, one.path) for r in runs)])
        return found

    def group(self, by: str | list[str], metric: str, at: str = "last") -> pandas.DataFrame:
        """Aggregate a value over runs that differ in other things, such as the seed.

        Args:
            by: The field, or fields, that the groups share.
            metric: The value: a field such as ``result.test_accuracy``, or a metric's name.
            at: Which value of a metric counts: ``last``, ``min`` or ``max``.

        Returns:
            Per group: mean, std (of the sample), count, and the ends of the 95 % interval of the
            mean by Student's t.

        Raises:
            QueryError: No such field.
        """
        from metatoolkit.records.table import group

        fields = self.fields([by] if isinstance(by, str) else by)
        value = value_field(metric, at)
        found = group(self.runs(), fields, value)
        if found.empty:
            self.check([value])
        return found

    def values(self, field: Field) -> dict[tuple[int, Any], Any]:
        """Read one field of every selected run.

        Args:
            field: The field.

        Returns:
            The value by (store, run id); None where there is none.
        """
        result = {}
        for position, store in enumerate(self._database.stores):
            for header in store.headers(self._condition(store), [field.path]):
                found = lookup(header, field.path)
                result[position, header["_id"]] = found[0] if found else None
        return result

    def fetch(self, position: int, ids: list[Any]) -> list[Run]:
        """Read runs by their ids.

        Args:
            position: Which store.
            ids: The ids.

        Returns:
            The runs.
        """
        store = self._database.stores[position]
        return [Run(document, store) for document in store.documents(ids)]

    def _copy(self) -> RunSet:
        made = RunSet(self._database, self._query)
        made._sort, made._limit = list(self._sort), self._limit
        return made

    def _read(self) -> list[Run]:
        paths = [field.path for field, _ in self._sort]
        chosen = [
            (position, header)
            for position, store in enumerate(self._database.stores)
            for header in store.headers(self._condition(store), paths)
        ]
        for field, downward in reversed(self._sort):
            with_value: list[tuple[Any, list[Any]]] = []
            without: list[tuple[Any, list[Any]]] = []
            for one in chosen:
                found = [value for value in lookup(one[1], field.path) if value is not None]
                (with_value if found else without).append((one, found))
            with_value.sort(key=lambda pair: order(pair[1][0]), reverse=downward)
            chosen = [one for one, _ in [*with_value, *without]]
            if chosen and not with_value:
                self.check([field])
        if not chosen:
            self.check(self._query.fields)
        if self._limit is not None:
            chosen = chosen[: self._limit]
        runs: dict[tuple[int, Any], Run] = {}
        for position in range(len(self._database.stores)):
            ids = [header["_id"] for where, header in chosen if where == position]
            for run in self.fetch(position, ids) if ids else []:
                runs[position, run.id] = run
        keys = [(position, header["_id"]) for position, header in chosen]
        return [runs[key] for key in keys if key in runs]

    def _condition(self, store: Store) -> dict[str, Any]:
        """Make the filter tell a run that lives from one that only says so."""
        if not any(field.root == "status" for field in self._query.fields):
            return self._query.filter
        running = store.headers({"status": {"$eq": "RUNNING"}}, LIFE)
        dead = [header["_id"] for header in running if status_of(header) == "PROBABLY_DEAD"]
        return with_dead(self._query.filter, dead) if dead else self._query.filter

    def check(self, fields: Sequence[Field]) -> None:
        """Tell misspelled fields from those that merely have no value here.

        Args:
            fields: Fields that were asked for in vain.

        Raises:
            QueryError: A field occurs in no run at all, while others of its kind do.
            UnknownNameError: No run has the metric.
        """
        stores = self._database.stores
        for field in fields:
            root, deep = FIELDS[field.root]
            if not deep:
                continue
            if any(store.headers({field.path: {"$exists": True}}, []) for store in stores):
                continue
            known: set[str] = set()
            for store in stores:
                for header in store.headers({root: {"$exists": True}}, [root])[-200:]:
                    known.update(flatten(header.get(root)))
            if not known:
                return
            if field.root == "metrics":
                metrics = {decode_key(name.partition(".")[0]) for name in known}
                metric = decode_key(field.path.split(".")[1]) if "." in field.path else ""
                if metric not in metrics:
                    raise UnknownNameError("metric", metric, metrics)
            names = sorted(f"{field.root}.{decode_key(name)}" for name in known)
            near = difflib.get_close_matches(field.name, names, 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(names[:20])}"
            raise QueryError(f"no run has the field {field.name}.{hint}")


def value_field(what: str, at: str = "last") -> Field:
    """Find the field that a result's or a metric's name means.

    Args:
        what: A field's name, or a metric's.
        at: Which value of a metric: ``last``, ``min`` or ``max``.

    Returns:
        The field.

    Raises:
        QueryError: The name is not understood.
    """
    root = what.partition(".")[0].partition("[")[0]
    if root in FIELDS:
        return parse_field(what)
    return parse_field(f"metrics[{what!r}].{at}")


def with_dead(condition: dict[str, Any], dead: list[Any]) -> dict[str, Any]:
    """Rewrite a filter so that some runs count as PROBABLY_DEAD.

    Args:
        condition: A filter that an expression was translated into.
        dead: The ids of the runs.

    Returns:
        The filter.
    """
    result = []
    for key, wanted in condition.items():
        if key in ("$and", "$or", "$nor"):
            result.append({key: [with_dead(entry, dead) for entry in wanted]})
        elif key == "status":
            alive = {"$and": [{key: wanted}, {"_id": {"$nin": dead}}]}
            meant = matches({"status": "PROBABLY_DEAD"}, {key: wanted})
            result.append({"$or": [alive, {"_id": {"$in": dead}}]} if meant else alive)
        else:
            result.append({key: wanted})
    return result[0] if len(result) == 1 else {"$and": result}


def _spooled(home: Path | None) -> Any:
    from metatoolkit.records.spool import spooled_runs

    return list(spooled_runs(home))
