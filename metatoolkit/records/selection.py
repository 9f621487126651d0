"""A selection of runs: ordered, limited, and read when it is looked at."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.expressions import Query, parse_field, value_field
from metatoolkit.records.fields import Field, identity, lookup
from metatoolkit.records.hints import check_fields, check_kinds, kind_hint, unmatched_value
from metatoolkit.records.matching import order, with_dead
from metatoolkit.records.run import Run, status_of
from metatoolkit.records.settings import check_entries
from metatoolkit.records.stores import Store

if TYPE_CHECKING:
    import pandas

    from metatoolkit.records.query import Database

LIFE = ("status", "proc", "heartbeat", "start_time")


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
        self._skipped = 0
        self._total = 0
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

    def skip(self, count: int) -> RunSet:
        """Leave out the first runs, as the second page of a long list does.

        Args:
            count: How many.

        Returns:
            A new selection.

        Raises:
            ConfigurationError: The count is negative.
        """
        if count < 0:
            raise ConfigurationError(f"an offset is 0 or more, not {count}")
        made = self._copy()
        made._skipped = count
        return made

    def total(self) -> int:
        """Count the runs that are selected, whatever the limit.

        Returns:
            Their number.
        """
        self.runs()
        return self._total

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

    def hint(self) -> str | None:
        """Say why nothing, or too little, was found: where no run has a value that was asked for.

        Returns:
            One line, such as ``no run has status == 'completed'; did you mean 'COMPLETED'?``, or
            None where all values occur. Of runs that were found it says only where a comparison
            expects another kind of value than there is.
        """
        if self._limit == 0:
            return None
        told = None if self.total() else unmatched_value(self._database.stores, self._query)
        return told or kind_hint(self._database.stores, self._query.expected)

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
        complete(runs, found)
        unused = [one for one in found if not any(lookup(r.document, one.path) for r in runs)]
        check_fields(self._database.stores, unused)
        return found

    def group(
        self,
        by: str | list[str],
        metric: str,
        at: str | int = "last",
        over: str | Sequence[str] = ("seed",),
    ) -> pandas.DataFrame:
        """Aggregate a value over runs that differ in nothing but the seed.

        Args:
            by: The field, or fields, that the groups share. Runs that share it and differ in other
                entries of the configuration make groups of their own.
            metric: The value: a field such as ``result.test_accuracy``, or a metric's name.
            at: Which value of a metric counts: ``last``, ``min``, ``max``, or the one at a step.
            over: The entry, or entries, of the configuration that are averaged over.

        Returns:
            Per group: the fields, the entries that tell groups of the same fields apart, mean, std
            (of the sample), count, and the ends of the 95 % interval of the mean by Student's t.
            ``attrs["notes"]`` holds sentences about what was kept apart and what was counted.

        Raises:
            QueryError: No such field.
            UnknownNameError: No run has an entry of ``over`` in its configuration.
        """
        from metatoolkit.records.table import group

        fields = self.fields([by] if isinstance(by, str) else by)
        value = value_field(metric, at)
        entries = [over] if isinstance(over, str) else list(over)
        runs = self.runs()
        if runs and entries != ["seed"]:
            check_entries(entries, runs)
        complete(runs, [value])
        found = group(runs, fields, value, entries)
        if found.empty:
            check_fields(self._database.stores, [value])
        return found

    def values(self, field: Field) -> list[tuple[int, Any, Any]]:
        """Read one field of every selected run.

        Args:
            field: The field.

        Returns:
            Position of the store, run id, and the value or None for each run.
        """
        result = []
        for position, store in enumerate(self._database.stores):
            for header in store.headers(self._condition(store), [field.path]):
                found = lookup(header, field.path)
                result.append((position, header["_id"], found[0] if found else None))
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
        return [Run(document, store) for document in store.documents(ids)] if ids else []

    def _copy(self) -> RunSet:
        made = RunSet(self._database, self._query)
        made._sort, made._limit, made._skipped = list(self._sort), self._limit, self._skipped
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
                check_fields(self._database.stores, [field])
        check_kinds(self._database.stores, self._query.expected)
        if not chosen:
            check_fields(self._database.stores, self._query.fields)
        self._total = len(chosen)
        end = None if self._limit is None else self._skipped + self._limit
        chosen = chosen[self._skipped : end]
        runs: dict[tuple[int, Hashable], Run] = {}
        for position in range(len(self._database.stores)):
            ids = [header["_id"] for where, header in chosen if where == position]
            for run in self.fetch(position, ids):
                runs[position, identity(run.id)] = run
        keys = [(position, identity(header["_id"])) for position, header in chosen]
        return [runs[key] for key in keys if key in runs]

    def _condition(self, store: Store) -> dict[str, Any]:
        """Make the filter tell a run that lives from one that only says so."""
        if not any(field.root == "status" for field in self._query.fields):
            return self._query.filter
        running = store.headers({"status": {"$eq": "RUNNING"}}, LIFE)
        dead = [header["_id"] for header in running if status_of(header) == "PROBABLY_DEAD"]
        return with_dead(self._query.filter, dead) if dead else self._query.filter


def complete(runs: Sequence[Run], fields: Sequence[Field]) -> None:
    """Put values into runs that their documents, as they were read, do not hold.

    Args:
        runs: The runs, whose documents are changed.
        fields: What is asked of them, such as a metric's value or the reason of a failure.
    """
    stores = {id(run.store): run.store for run in runs}
    for key, store in stores.items():
        documents = [run.document for run in runs if id(run.store) == key]
        store.complete(
            [one for one in documents if isinstance(one, dict)], [f.path for f in fields]
        )


def nothing_found(runs: RunSet) -> str:
    """Say that a selection is empty, and why, where that is known.

    Args:
        runs: The selection.

    Returns:
        One line.
    """
    hint = runs.hint()
    return "no runs match" if hint is None else f"no runs match: {hint}"
