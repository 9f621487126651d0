"""Where runs are read from: the interface, and MongoDB; the spool is in ``spool_store``.

Documents hold what was stored. What is asked for beyond that is put into them as they are read:
values of metrics at a step, the reason of an end, and what stock Sacred keeps elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from metatoolkit.errors import RecordsError
from metatoolkit.records.address import Address, database_errors
from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.expressions import MARKED, REASON
from metatoolkit.records.fields import identity
from metatoolkit.records.files import download
from metatoolkit.records.metrics import summarize

if TYPE_CHECKING:
    from pymongo.database import Database

HEAVY = ("captured_out", "fail_trace", "experiment.sources", "experiment.dependencies")
REASON_PATHS = ("fail_trace", "status_note")
PICKLED = ("result", "info")

Document = dict[str, Any]


class Store(Protocol):
    """Where runs are read from."""

    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> list[Document]:
        """Read some fields of runs.

        Args:
            prefilter: A filter of MongoDB; runs that it does not select may be left out.
            paths: Dotted paths of what is asked for.

        Returns:
            At least these fields of each run.
        """

    def documents(self, ids: list[Any], whole: bool = False) -> list[Document]:
        """Return runs by their ids.

        Args:
            ids: Ids.
            whole: Whether to fetch captured output and the like too.

        Returns:
            The documents in the order of the ids.
        """

    def complete(self, documents: list[Document], paths: Iterable[str]) -> None:
        """Put into documents what is asked for and not, or not always, stored in them.

        Args:
            documents: Documents of this store, which are changed.
            paths: Dotted paths of what is asked for.
        """

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times; empty lists where there is no such metric."""

    def metric_names(self, document: Mapping[str, Any] | None = None) -> set[str]:
        """Return the names of all metrics: of a run, listed in its document or not, or of all."""

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
        self, database: Database[Document], address: Address, home: Path | None = None
    ) -> None:
        self.database = database
        self.address = address
        self.home = home

    def _find(self, name: str, *asked: Any) -> list[Document]:
        # Parts of a metric in their order; those that have none come first.
        key = "part" if name == "metrics" else "_id"
        with database_errors(self.address):
            return list(self.database[name].find(*asked).sort(key, 1))

    @override
    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> list[Document]:
        asked = list(dict.fromkeys(paths))
        found = self._find("runs", prefilter, _projection(asked))
        self._finish(found, asked)
        return found

    @override
    def complete(self, documents: list[Document], paths: Iterable[str]) -> None:
        asked = list(dict.fromkeys(paths))
        heavy = [path for path in HEAVY if any(f"{one}.".startswith(f"{path}.") for one in asked)]
        heavy += REASON_PATHS if REASON in asked else ()
        if heavy:
            ids = [document["_id"] for document in documents]
            read = self._find("runs", {"_id": {"$in": ids}}, _projection(heavy))
            more = {identity(entry.pop("_id")): entry for entry in read}
            for document in documents:
                _merge(document, more.get(identity(document["_id"]), {}))
        self._finish(documents, asked)

    def _finish(self, documents: list[Document], paths: list[str]) -> None:
        _unpickle(documents)
        if REASON in paths:
            add_reasons(documents)
        names, steps = named_metrics(paths), steps_asked(paths)
        chosen = [one for one in documents if steps or _is_unlisted(one)]
        if names == [] or not chosen:
            return
        condition: Document = {"run_id": {"$in": [one["_id"] for one in chosen]}}
        if names is not None:
            condition["name"] = {"$in": names}
        series: dict[Any, dict[str, tuple[list[Any], list[Any]]]] = {}
        fields = dict.fromkeys(("run_id", "name", "steps", "values"), 1)
        for part in self._find("metrics", condition, fields):
            own = series.setdefault(identity(part.get("run_id")), {})
            at, values = own.setdefault(str(part.get("name")), ([], []))
            at += part.get("steps") or []
            values += part.get("values") or []
        for document in chosen:
            own = series.get(identity(document["_id"]), {})
            complete_metrics(document, own.__getitem__, own, steps)

    @override
    def documents(self, ids: list[Any], whole: bool = False) -> list[Document]:
        fields = None if whole else dict.fromkeys(HEAVY, 0)
        read = self._find("runs", {"_id": {"$in": ids}}, fields)
        _unpickle(read)
        for document in read:
            if _is_unlisted(document):
                document.setdefault(MARKED, True)
        found = {identity(document["_id"]): document for document in read}
        return [found[identity(one)] for one in ids if identity(one) in found]

    @override
    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        lists: tuple[list[Any], ...] = ([], [], [])
        for part in self._find("metrics", {"run_id": document["_id"], "name": name}):
            for one, field in zip(lists, ("steps", "values", "timestamps"), strict=True):
                one += part.get(field, [])
        return lists

    @override
    def metric_names(self, document: Mapping[str, Any] | None = None) -> set[str]:
        condition = [] if document is None else [{"$match": {"run_id": document["_id"]}}]
        with database_errors(self.address):
            groups = self.database["metrics"].aggregate([*condition, {"$group": {"_id": "$name"}}])
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


def plain_objects(value: Any) -> Any:
    """Read NumPy's numbers and arrays, tuples and keys as jsonpickle writes them; decode no others.

    Args:
        value: Data that stock Sacred has stored.

    Returns:
        The data with plain numbers and lists in their places.
    """
    if isinstance(value, list):
        return [plain_objects(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"py/tuple"}:
        return plain_objects(value["py/tuple"])
    if str(value.get("py/object", "")).startswith("numpy."):
        if isinstance(value.get("value"), bool | int | float):
            return value["value"]
        if isinstance(value.get("values"), list):
            return value["values"]
    return {str(key).removeprefix("json://"): plain_objects(one) for key, one in value.items()}


def named_metrics(paths: Iterable[str]) -> list[str] | None:
    """List the metrics whose values some dotted paths ask for; None stands for all of them."""
    parts = [path.split(".") for path in paths]
    if ["summary"] in parts:
        return None
    return list(dict.fromkeys(decode_key(one[1]) for one in parts if one[0] == "summary"))


def steps_asked(paths: Iterable[str]) -> dict[str, list[str]]:
    """List the steps, as paths such as ``summary.loss.at.100`` write them, by metric."""
    found: dict[str, list[str]] = {}
    for parts in (path.split(".") for path in paths):
        if parts[0] == "summary" and len(parts) == 4 and parts[2] == "at":
            found.setdefault(decode_key(parts[1]), []).append(parts[3])
    return found


def complete_metrics(
    document: Document,
    read: Callable[[str], Sequence[Sequence[Any]]],
    names: Iterable[str],
    steps: Mapping[str, Sequence[str]],
) -> None:
    """Put what is asked about metrics into a document.

    Args:
        document: The document, which is changed.
        read: Returns steps and values of a metric of this run, and perhaps more.
        names: The metrics.
        steps: The steps asked for, by metric.
    """
    present = document.get("summary")
    summary = dict(present) if isinstance(present, Mapping) else {}
    for name in names:
        at, values = read(name)[:2]
        if not values:
            continue
        key = encode_key(name)
        former = summary.get(key)
        entry = {**(former if isinstance(former, Mapping) else {}), **summarize(at, values)}
        for step in steps.get(name, ()):
            number = float(decode_key(step))
            found = [value for one, value in zip(at, values, strict=False) if one == number]
            if found:
                # A resumed run may have logged a step twice: the later value counts.
                entry["at"] = {**entry.get("at", {}), step: found[-1]}
        summary[key] = entry
    if summary:
        document["summary"] = summary


def reason(document: Mapping[str, Any]) -> str | None:
    """Say in one line why a run ended before its time.

    Args:
        document: The run's document, its traceback included.

    Returns:
        The error's own line, else the note about its end; None where there is neither.
    """
    trace = document.get("fail_trace")
    lines = trace if isinstance(trace, list) else [trace or ""]
    text = "".join(str(line) for line in lines).strip()
    if text:
        told = [line for line in text.splitlines() if line and not line[0].isspace()]
        return told[-1] if told else text.splitlines()[-1].strip()
    note = document.get("status_note")
    return str(note) if note else None


def add_reasons(documents: Iterable[Document]) -> None:
    """Put the reasons of ends into documents, where there are some, tracebacks included."""
    for document in documents:
        told = reason(document)
        if told is not None:
            document[REASON] = told


def _projection(paths: Iterable[str]) -> dict[str, int]:
    """List the stored fields that paths ask for, none of which may be a part of another."""
    stored = {"run_uuid": 1, MARKED: 1}
    for path in paths:
        # A metric is read as a whole, and so is a list of which one entry is asked for.
        parts = path.split(".")[: 2 if path.startswith("summary.") else None]
        whole = itertools.takewhile(lambda part: not part.isdigit(), parts)
        stored |= dict.fromkeys(REASON_PATHS if path == REASON else [".".join(whole)], 1)
    return {path: 1 for path in stored if not any(path.startswith(f"{other}.") for other in stored)}


def _is_unlisted(document: Mapping[str, Any]) -> bool:
    """Say the same of a document as the filter ``UNLISTED``."""
    return not document.get("summary") or MARKED in document or "run_uuid" not in document


def _unpickle(documents: Iterable[Document]) -> None:
    """Have numbers where stock Sacred has stored NumPy's own."""
    for document in documents:
        if "run_uuid" not in document:
            document.update({n: plain_objects(document[n]) for n in PICKLED if n in document})


def _merge(document: Document, more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        present = document.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            document[key] = value
