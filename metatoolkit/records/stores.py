"""The two places that runs are read from, behind one interface: MongoDB and the spool."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metatoolkit.errors import RecordsError
from metatoolkit.records.address import Address, database_errors
from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.fields import duration, identity
from metatoolkit.records.files import download, file_blocks
from metatoolkit.records.matching import matches
from metatoolkit.records.metric_copy import MetricCopy
from metatoolkit.records.push import shorten
from metatoolkit.records.spool import RunSpool, spooled_runs

if TYPE_CHECKING:
    from pymongo.database import Database

HEAVY = ("captured_out", "fail_trace", "experiment.sources", "experiment.dependencies")
_EPOCH = datetime.datetime(1970, 1, 1)


class Store(Protocol):
    """Where runs are read from."""

    def headers(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        """Select runs and return the named fields of each."""

    def documents(self, ids: list[Any], whole: bool = False) -> list[dict[str, Any]]:
        """Return runs by their ids, without their heavy fields unless ``whole``."""

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times."""

    def metric_names(self, document: Mapping[str, Any]) -> list[str]:
        """Return the names of all metrics of a run that has very many."""

    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Read an artifact, block by block."""


class MongoStore:
    """Runs in a MongoDB database.

    Args:
        database: The database.
        address: Its address, for messages.
    """

    def __init__(self, database: Database[dict[str, Any]], address: Address) -> None:
        self.database = database
        self.address = address

    def headers(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        """Select runs and return the named fields of each.

        Args:
            condition: A filter.
            paths: Dotted paths.

        Returns:
            Partial documents, by id.
        """
        fields = {"run_uuid": 1, **{path: 1 for path in paths}}
        with database_errors(self.address):
            return list(self.database["runs"].find(condition, fields).sort("_id", 1))

    def documents(self, ids: list[Any], whole: bool = False) -> list[dict[str, Any]]:
        """Return runs by their ids.

        Args:
            ids: Ids.
            whole: Whether to fetch captured output and the like too.

        Returns:
            The documents in the order of the ids.
        """
        fields = None if whole else dict.fromkeys(HEAVY, 0)
        with database_errors(self.address):
            found = {
                identity(entry["_id"]): entry
                for entry in self.database["runs"].find({"_id": {"$in": ids}}, fields)
            }
        return [found[identity(one)] for one in ids if identity(one) in found]

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times.

        Args:
            document: The run.
            name: The metric.

        Returns:
            Three lists, empty if there is no such metric.
        """
        steps: list[Any] = []
        values: list[Any] = []
        times: list[Any] = []
        with database_errors(self.address):
            condition = {"run_id": document["_id"], "name": name}
            # In the order of the parts; documents that have none come first.
            for part in self.database["metrics"].find(condition).sort("part", 1):
                steps += part.get("steps", [])
                values += part.get("values", [])
                times += part.get("timestamps", [])
        return steps, values, times

    def metric_names(self, document: Mapping[str, Any]) -> list[str]:
        """Return the names of all metrics of a run that has very many.

        Args:
            document: The run.

        Returns:
            The names.
        """
        with database_errors(self.address):
            found = self.database["metrics"].find({"run_id": document["_id"]}, {"name": 1})
            return sorted({str(entry["name"]) for entry in found})

    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Read an artifact, block by block.

        Args:
            document: The run.
            entry: The artifact's entry in it.

        Yields:
            Its bytes.

        Raises:
            RecordsError: The database does not hold the file.
        """
        from gridfs.errors import CorruptGridFile, NoFile

        with database_errors(self.address):
            try:
                yield from download(self.database, entry["file_id"])
            except (NoFile, CorruptGridFile, KeyError):
                raise RecordsError(
                    f"run {document['_id']}: the database does not hold the artifact "
                    f"{entry.get('name')!r}"
                ) from None


class SpoolStore:
    """Runs that lie in the spool of this machine and not, or not yet, in a database.

    Args:
        home: The data directory.
        known: Says which of these run ids the database has already.
    """

    def __init__(self, home: Path | None = None, known: frozenset[str] = frozenset()) -> None:
        self.home = home
        self._spools: dict[str, RunSpool] = {}
        self._documents: list[dict[str, Any]] = []
        for spool in spooled_runs(home):
            if spool.uuid in known:
                continue
            try:
                self._documents.append(_as_stored(spool))
            except (RecordsError, OSError):
                # Pushed and deleted in this very moment, or damaged: `records doctor` tells.
                continue
            self._spools[spool.uuid] = spool

    def spool(self, document: Mapping[str, Any]) -> RunSpool:
        """Find the folder of a run.

        Args:
            document: The run.

        Returns:
            Its folder.
        """
        return self._spools[document["run_uuid"]]

    def headers(self, condition: Mapping[str, Any], paths: Iterable[str]) -> list[dict[str, Any]]:
        """Select runs.

        Args:
            condition: A filter.
            paths: Not needed here.

        Returns:
            Whole documents, oldest first.
        """
        return [document for document in self._documents if matches(document, condition)]

    def documents(self, ids: list[Any], whole: bool = False) -> list[dict[str, Any]]:
        """Return runs by their ids.

        Args:
            ids: Ids.
            whole: Whether to read captured output too.

        Returns:
            The documents in the order of the ids.
        """
        found = {document["_id"]: document for document in self._documents}
        chosen = [found[one] for one in ids if one in found]
        if whole:
            for document in chosen:
                output = self._spools[document["run_uuid"]].path / "cout.txt"
                if output.exists():
                    document["captured_out"] = shorten(output.read_bytes())
        return chosen

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times.

        Args:
            document: The run.
            name: The metric.

        Returns:
            Three lists, empty if there is no such metric.
        """
        steps: list[Any] = []
        values: list[Any] = []
        times: list[Any] = []
        path = self._spools[document["run_uuid"]].path / "metrics.jsonl"
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    key, step, value, seconds = json.loads(line)
                except ValueError:
                    continue
                if key == name:
                    steps.append(step)
                    values.append(value)
                    times.append(_EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000)))
        return steps, values, times

    def metric_names(self, document: Mapping[str, Any]) -> list[str]:
        """Return the names of all metrics of a run that has very many.

        Args:
            document: The run.

        Returns:
            The names.
        """
        return [decode_key(name) for name in document["summary"]]

    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Read an artifact, block by block.

        Args:
            document: The run.
            entry: The artifact's entry in it.

        Yields:
            Its bytes.

        Raises:
            RecordsError: The spool does not hold the file.
        """
        try:
            yield from file_blocks(self._spools[document["run_uuid"]].file(entry["sha256"]))
        except OSError as error:
            raise RecordsError(f"cannot read the artifact {entry['name']!r}: {error}") from error


def _as_stored(spool: RunSpool) -> dict[str, Any]:
    document = spool.read_document()
    metrics = spool.open_metrics()
    try:
        copy = MetricCopy(spool, metrics)
        copy.read()
        document["summary"] = {encode_key(name): one for name, one in copy.summary.items()}
    finally:
        metrics.close()
    # No database has given it a number: the beginning of its own id stands in.
    document["_id"] = spool.uuid[:8]
    document.setdefault("duration", duration(document))
    document["spooled"] = True
    return document
