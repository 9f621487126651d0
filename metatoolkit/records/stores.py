"""Where runs are read from: the interface, and MongoDB; the spool is in ``spool_store``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from metatoolkit.errors import RecordsError
from metatoolkit.records.address import Address, database_errors
from metatoolkit.records.clean import encode_key
from metatoolkit.records.completion import (
    HEAVY,
    MARKED,
    PICKLED,
    REASON,
    REASON_PATHS,
    UNLISTED,
    add_reason,
    complete_metrics,
    condition_paths,
    has_test,
    is_computed,
    may_be_pickled,
    named_metrics,
    needs_look,
    plain_objects,
    steps_asked,
    weakened,
)
from metatoolkit.records.fields import identity, lookup
from metatoolkit.records.files import download
from metatoolkit.records.matching import matches, order

if TYPE_CHECKING:
    from pymongo.database import Database


class Store(Protocol):
    """Where runs are read from."""

    def headers(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        """Select runs.

        Args:
            condition: A filter.
            paths: Dotted paths of what is asked for.

        Returns:
            At least these fields of each run that the filter selects.
        """

    def documents(self, ids: list[Any], whole: bool = False) -> list[dict[str, Any]]:
        """Return runs by their ids.

        Args:
            ids: Ids.
            whole: Whether to fetch captured output and the like too.

        Returns:
            The documents in the order of the ids.
        """

    def first(self, condition: Mapping[str, Any], path: str) -> dict[str, Any] | None:
        """Look for a run that has something.

        Args:
            condition: A filter.
            path: A dotted path.

        Returns:
            At least this field of one such run; None where there is none.
        """

    def complete(self, documents: list[dict[str, Any]], paths: Iterable[str]) -> None:
        """Put into documents what is asked for and not, or not always, stored in them.

        Args:
            documents: Documents of this store, which are changed.
            paths: Dotted paths of what is asked for.
        """

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times; empty lists where there is no such metric."""

    def metric_names(self, document: Mapping[str, Any]) -> list[str]:
        """Return the names of all metrics of a run whose document does not list them."""

    def has_metric(self, name: str) -> bool:
        """Say whether any run has a metric, listed in its document or not."""

    def all_metric_names(self) -> set[str]:
        """Return the names of the metrics of all runs."""

    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Read an artifact, block by block.

        Args:
            document: The run.
            entry: The artifact's entry in it.

        Yields:
            Its bytes.

        Raises:
            RecordsError: It is not stored.
        """


class MongoStore(Store):
    """Runs in a MongoDB database.

    Args:
        database: The database.
        address: Its address, for messages.
        home: The data directory, whose spool may hold more of a run.
    """

    def __init__(
        self, database: Database[dict[str, Any]], address: Address, home: Path | None = None
    ) -> None:
        self.database = database
        self.address = address
        self.home = home

    @override
    def headers(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        wanted = [*paths]
        if not needs_look(condition):
            found = self._find(condition, wanted)
            self.complete(found, wanted)
            return found
        every = [*wanted, *condition_paths(condition)]
        broad = weakened(condition)
        if self._answerable(condition):
            # MongoDB selects among the runs that list their metrics, and leaves few to look at.
            found = self._find({"$and": [condition, {"$nor": [UNLISTED]}]}, every)
            rest = self._find({"$and": [broad, UNLISTED]}, every)
        else:
            found, rest = [], self._find(broad, every)
        self.complete(rest, every)
        self.complete(found, wanted)
        found += [document for document in rest if matches(document, condition)]
        return sorted(found, key=lambda document: order(document["_id"]))

    @override
    def first(self, condition: Mapping[str, Any], path: str) -> dict[str, Any] | None:
        look = needs_look(condition)
        if not look or self._answerable(condition):
            own = {"$and": [condition, {"$nor": [UNLISTED]}]} if look else condition
            with database_errors(self.address):
                found = self.database["runs"].find_one(own, {path: 1})
            if found is not None or not look:
                return found
        return next(iter(self.headers(condition, [path])), None)

    @override
    def complete(self, documents: list[dict[str, Any]], paths: Iterable[str]) -> None:
        asked = list(dict.fromkeys(paths))
        if any(may_be_pickled(path) for path in asked):
            _unpickle(documents)
        heavy = [path for path in HEAVY if any(f"{one}.".startswith(f"{path}.") for one in asked)]
        if REASON in asked:
            heavy += REASON_PATHS
        lacking = [one for one in documents if any(not lookup(one, path) for path in heavy)]
        if heavy and lacking:
            ids = [document["_id"] for document in lacking]
            with database_errors(self.address):
                fields = {path: 1 for path in heavy}
                read = list(self.database["runs"].find({"_id": {"$in": ids}}, fields))
            more = {identity(entry.pop("_id")): entry for entry in read}
            for document in lacking:
                _merge(document, more.get(identity(document["_id"]), {}))
        if REASON in asked:
            for document in documents:
                add_reason(document)
        self._complete_metrics(documents, asked)

    def _complete_metrics(self, documents: list[dict[str, Any]], paths: list[str]) -> None:
        names, steps = named_metrics(paths), steps_asked(paths)
        if names == []:
            return
        chosen = [one for one in documents if steps or _is_unlisted(one)]
        if not chosen:
            return
        condition: dict[str, Any] = {"run_id": {"$in": [one["_id"] for one in chosen]}}
        if names is not None:
            condition["name"] = {"$in": names}
        series: dict[Any, dict[str, tuple[list[Any], list[Any]]]] = {}
        fields = dict.fromkeys(("run_id", "name", "steps", "values"), 1)
        with database_errors(self.address):
            for part in self.database["metrics"].find(condition, fields).sort("part", 1):
                own = series.setdefault(identity(part.get("run_id")), {})
                at, values = own.setdefault(str(part.get("name")), ([], []))
                at += part.get("steps") or []
                values += part.get("values") or []
        for document in chosen:
            own = series.get(identity(document["_id"]), {})
            complete_metrics(document, own.__getitem__, own, steps)

    def _find(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        stored = {path: 1 for path in paths if path != REASON and ".at." not in path}
        if any(is_computed(path) for path in stored):
            names = named_metrics(stored)
            stored = {path: 1 for path in stored if not is_computed(path)}
            kept = ["summary"] if names is None else [f"summary.{encode_key(n)}" for n in names]
            stored |= dict.fromkeys([*kept, MARKED], 1)
        # A path and a part of it cannot both be asked for.
        for path in [*stored]:
            if any(path.startswith(f"{other}.") for other in stored):
                del stored[path]
        with database_errors(self.address):
            found = self.database["runs"].find(condition, {"run_uuid": 1, **stored})
            return list(found.sort("_id", 1))

    def _answerable(self, condition: Mapping[str, Any]) -> bool:
        """Say whether MongoDB can apply a filter to runs that list their metrics."""
        paths = list(condition_paths(condition))
        return not has_test(condition) and not steps_asked(paths) and REASON not in paths

    @override
    def documents(self, ids: list[Any], whole: bool = False) -> list[dict[str, Any]]:
        fields = None if whole else dict.fromkeys(HEAVY, 0)
        with database_errors(self.address):
            found = {
                identity(entry["_id"]): entry
                for entry in self.database["runs"].find({"_id": {"$in": ids}}, fields)
            }
        _unpickle(found.values())
        for document in found.values():
            if _is_unlisted(document):
                document.setdefault(MARKED, True)
        return [found[identity(one)] for one in ids if identity(one) in found]

    @override
    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        lists: tuple[list[Any], ...] = ([], [], [])
        with database_errors(self.address):
            condition = {"run_id": document["_id"], "name": name}
            # In the order of the parts; documents that have none come first.
            for part in self.database["metrics"].find(condition).sort("part", 1):
                for one, field in zip(lists, ("steps", "values", "timestamps"), strict=True):
                    one += part.get(field, [])
        return lists

    @override
    def metric_names(self, document: Mapping[str, Any]) -> list[str]:
        with database_errors(self.address):
            found = self.database["metrics"].find({"run_id": document["_id"]}, {"name": 1})
            return sorted({str(entry.get("name")) for entry in found})

    @override
    def has_metric(self, name: str) -> bool:
        with database_errors(self.address):
            listed = {f"summary.{encode_key(name)}": {"$exists": True}}
            if self.database["runs"].find_one(listed, {"_id": 1}) is not None:
                return True
            return self.database["metrics"].find_one({"name": name}, {"_id": 1}) is not None

    @override
    def all_metric_names(self) -> set[str]:
        with database_errors(self.address):
            groups = self.database["metrics"].aggregate([{"$group": {"_id": "$name"}}])
            return {str(entry["_id"]) for entry in groups}

    @override
    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        from gridfs.errors import CorruptGridFile, NoFile

        with database_errors(self.address):
            try:
                yield from download(self.database, entry["file_id"])
            except (NoFile, CorruptGridFile, KeyError):
                raise RecordsError(
                    f"run {document['_id']}: the database does not hold the artifact "
                    f"{entry.get('name')!r}"
                ) from None


def _is_unlisted(document: Mapping[str, Any]) -> bool:
    """Say the same of a document as the filter ``UNLISTED``."""
    return not document.get("summary") or MARKED in document or "run_uuid" not in document


def _unpickle(documents: Iterable[dict[str, Any]]) -> None:
    """Have numbers where stock Sacred has stored NumPy's own."""
    for document in documents:
        if "run_uuid" not in document:
            document.update({n: plain_objects(document[n]) for n in PICKLED if n in document})


def _merge(document: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        present = document.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            document[key] = value
