"""A selection of runs: ordered, limited, and read when it is looked at."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, QueryError
from metatoolkit.records.expressions import Query, parse_field, value_field
from metatoolkit.records.fields import Field, identity, is_kind, lookup, order
from metatoolkit.records.run import Run, status_of
from metatoolkit.records.stores import Document
from metatoolkit.records.table import check_entries, group, table

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
        self._unproven = query.expected
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
        return self._with(
            _sort=[(parse_field(key.lstrip("-+")), key.startswith("-")) for key in keys]
        )

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
        return self._with(_limit=count)

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
        return self._with(_skipped=count)

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
            QueryError: A field that the expression names occurs in no run at all, or a comparison
                would be answered falsely.
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
        told = None if self.total() else self._database.value_hint(self._query)
        kinds = (self._database.kind_hint(one) for one in self._unproven)
        return told or next((one for one in kinds if one is not None), None)

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
        return table(self.runs(), None if columns is None else self.fields(columns))

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
        self._database.check_fields(unused)
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
        fields = self.fields([by] if isinstance(by, str) else by)
        value = value_field(metric, at)
        entries = [over] if isinstance(over, str) else list(over)
        runs = self.runs()
        if runs and entries != ["seed"]:
            check_entries(entries, runs)
        complete(runs, [value])
        found = group(runs, fields, value, entries)
        if found.empty:
            self._database.check_fields([value])
        return found

    def select(self, *fields: Field) -> list[tuple[int, Document]]:
        """Read fields of every selected run, in the order of their ids.

        Args:
            fields: The fields.

        Returns:
            For each run the position of its store, and a document with these fields.
        """
        paths = [field.path for field in (*self._query.fields, *fields)]
        by_life = any(field.root == "status" for field in self._query.fields)
        paths += LIFE if by_life else ()
        # What a run printed is long, and of no more use once it has been looked at.
        brief = {} if any(field.root == "output" for field in fields) else {"captured_out": ""}
        chosen = []
        for position, store in enumerate(self._database.stores):
            for header in store.headers(self._query.prefilter, paths):
                # A run that lives is told from one that only says so.
                known = {**header, "status": status_of(header)} if by_life else header
                if self._query.holds(known):
                    shown = header | brief if "captured_out" in header else header
                    chosen.append((position, shown))
        return chosen

    def fetch(self, chosen: Sequence[tuple[int, Document]]) -> list[Run]:
        """Read runs.

        Args:
            chosen: The positions of their stores, and documents with their ids.

        Returns:
            The runs, as far as they are still there.
        """
        runs: dict[tuple[int, Hashable], Run] = {}
        for position, store in enumerate(self._database.stores):
            ids = [header["_id"] for where, header in chosen if where == position]
            for document in store.documents(ids) if ids else ():
                runs[position, identity(document["_id"])] = Run(document, store)
        keys = [(position, identity(header["_id"])) for position, header in chosen]
        return [runs[key] for key in keys if key in runs]

    def _with(self, **changes: Any) -> RunSet:
        made = copy.copy(self)
        vars(made).update(changes, _found=None)
        return made

    def _read(self) -> list[Run]:
        chosen = self.select(*(field for field, _ in self._sort))
        for field, downward in reversed(self._sort):
            values = [[v for v in lookup(one, field.path) if v is not None] for _, one in chosen]
            having = [(one, found[0]) for one, found in zip(chosen, values, strict=True) if found]
            without_value = [one for one, found in zip(chosen, values, strict=True) if not found]
            having.sort(key=lambda pair: order(pair[1]), reverse=downward)
            if chosen and not having:
                self._database.check_fields([field])
            chosen = [*(one for one, _ in having), *without_value]
        # What no run that was found shows to be a sensible comparison.
        self._unproven = [
            one
            for one in self._query.expected
            if not any(is_kind(v, one.kind) for _, h in chosen for v in lookup(h, one.field.path))
        ]
        for one in self._unproven:
            told = self._database.kind_hint(one) if one.strict else None
            if told is not None:
                raise QueryError(told)
        if not chosen:
            self._database.check_fields(self._query.fields)
        self._total = len(chosen)
        end = None if self._limit is None else self._skipped + self._limit
        return self.fetch(chosen[self._skipped : end])


def complete(runs: Sequence[Run], fields: Sequence[Field]) -> None:
    """Put values into runs that their documents, as they were read, do not hold."""
    for store in {id(run.store): run.store for run in runs}.values():
        documents = [run.document for run in runs if run.store is store]
        known = [one for one in documents if isinstance(one, dict)]
        store.complete(known, [field.path for field in fields])
