"""Where runs are read from: a database of MongoDB, and the spool of this machine.

Documents hold what was stored. What is asked for beyond that is put into them as they are read:
values of metrics at a step, the reason of an end, and what stock Sacred keeps elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from metatoolkit.errors import RecordsError
from metatoolkit.records.address import Address, database_errors
from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.expressions import MARKED, REASON
from metatoolkit.records.fields import duration, identity
from metatoolkit.records.files import download, file_blocks
from metatoolkit.records.metrics import MetricPush, summarize
from metatoolkit.records.push import shorten
from metatoolkit.records.spool import RunSpool, spooled_runs

if TYPE_CHECKING:
    from pymongo.database import Database

HEAVY = ("captured_out", "fail_trace", "experiment.sources", "experiment.dependencies")
REASON_PATHS = ("fail_trace", "status_note")
PICKLED = ("result", "info")
Document = dict[str, Any]


class Store(Protocol):
    """Where runs are read from."""

    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> Iterator[Document]:
        """Read fields of runs, in the order of their ids.

        Args:
            prefilter: A filter of MongoDB; runs that it does not select may be left out.
            paths: Dotted paths of what is asked for.

        Yields:
            At least these fields of each run.
        """

    def documents(self, ids: list[Any], whole: bool = False) -> list[Document]:
        """Return runs in the order of their ids; ``whole`` ones hold what they printed, too."""

    def complete(self, documents: list[Document], paths: Iterable[str]) -> None:
        """Put into documents what dotted paths ask for and is not, or not always, stored there."""

    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        """Return a metric's steps, values and times; empty lists where there is no such metric."""

    def metric_names(self, document: Mapping[str, Any] | None = None) -> set[str]:
        """Return the names of all metrics: of a run, listed in its document or not, or of all."""

    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        """Read the artifact of an entry block by block, or raise a RecordsError."""


class MongoStore(Store):
    """Runs in a MongoDB database.

    Args:
        database: The database.
        address: Its address, for messages.
        home: The data directory, whose spool may hold more of a run.
    """

    def __init__(self, database: Database[Document], address: Address, home: Path | None) -> None:
        self.database = database
        self.address = address
        self.home = home

    def _find(self, name: str, *asked: Any) -> list[Document]:
        key = "part" if name == "metrics" else "_id"
        with database_errors(self.address):
            return list(self.database[name].find(*asked).sort(key, 1))

    @override
    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> Iterator[Document]:
        asked = list(dict.fromkeys(paths))
        # What runs printed is long: only some of it is here at a time.
        count = 50 if "captured_out" in asked else 1000
        with database_errors(self.address):
            found = self.database["runs"].find(prefilter, _projection(asked)).sort("_id", 1)
            while some := list(itertools.islice(found, count)):
                self._finish(some, asked)
                yield from some

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
            _add_reasons(documents)
        asked = metrics_asked(paths)
        every = "summary" in paths
        chosen = [one for one in documents if any(asked.values()) or _is_unlisted(one)]
        if not chosen or not (asked or every):
            return
        condition: Document = {"run_id": {"$in": [one["_id"] for one in chosen]}}
        if not every:
            condition["name"] = {"$in": list(asked)}
        series: dict[Any, dict[str, tuple[list[Any], list[Any]]]] = {}
        fields = dict.fromkeys(("run_id", "name", "steps", "values"), 1)
        for part in self._find("metrics", condition, fields):
            own = series.setdefault(identity(part.get("run_id")), {})
            at, values = own.setdefault(str(part.get("name")), ([], []))
            at += part.get("steps") or []
            values += part.get("values") or []
        for document in chosen:
            own = series.get(identity(document["_id"]), {})
            complete_metrics(document, own.__getitem__, own, asked)

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
                told = f"the database does not hold the artifact {entry.get('name')!r}"
                raise RecordsError(f"run {document['_id']}: {told}") from None


class SpoolStore(Store):
    """Runs that lie in the spool of this machine and not, or not yet, in a database.

    Args:
        home: The data directory.
        known: Says which of these run ids the database has already.
    """

    def __init__(self, home: Path | None = None, known: frozenset[str] = frozenset()) -> None:
        self.home = home
        self._spools: dict[str, RunSpool] = {}
        self._documents: list[Document] = []
        for spool in (one for one in spooled_runs(home) if one.uuid not in known):
            try:
                self._documents.append(_as_stored(spool))
            except (RecordsError, OSError):
                # Pushed and deleted in this very moment, or damaged: `records doctor` tells.
                continue
            self._spools[spool.uuid] = spool

    @override
    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> Iterator[Document]:
        self.complete(self._documents, paths)
        yield from self._documents

    @override
    def complete(self, documents: list[Document], paths: Iterable[str]) -> None:
        asked = list(paths)
        if REASON in asked:
            _add_reasons(documents)
        metrics = {name: steps for name, steps in metrics_asked(asked).items() if steps}
        for document in documents:
            output = self._spools[document["run_uuid"]].path / "cout.txt"
            if "captured_out" in asked and output.exists():
                document["captured_out"] = shorten(output.read_bytes())
            complete_metrics(document, partial(self.metric, document), metrics, metrics)

    @override
    def documents(self, ids: list[Any], whole: bool = False) -> list[Document]:
        found = {document["_id"]: document for document in self._documents}
        chosen = [found[one] for one in ids if one in found]
        self.complete(chosen, ["captured_out"] if whole else [])
        return chosen

    @override
    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        entries = _values_of(self._spools[document["run_uuid"]]).logged(name)
        return tuple([entry[place] for entry in entries] for place in range(3))

    @override
    def metric_names(self, document: Mapping[str, Any] | None = None) -> set[str]:
        chosen = self._documents if document is None else [document]
        return {decode_key(name) for one in chosen for name in one["summary"]}

    @override
    def content(self, document: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[bytes]:
        try:
            yield from file_blocks(self._spools[document["run_uuid"]].file(entry["sha256"]))
        except OSError as error:
            raise RecordsError(f"cannot read the artifact {entry['name']!r}: {error}") from error


def _values_of(spool: RunSpool) -> MetricPush:
    with closing(RunSpool(spool.path)) as opened:
        values = MetricPush(opened)
        values.read()
        return values


def _as_stored(spool: RunSpool) -> Document:
    document = spool.read_document()
    summary = _values_of(spool).summary
    document["summary"] = {encode_key(name): one for name, one in summary.items()}
    # No database has given it a number: the beginning of its own id stands in.
    document["_id"] = spool.uuid[:8]
    document.setdefault("duration", duration(document))
    document["spooled"] = True
    return document


def plain_objects(value: Any) -> Any:
    """Read NumPy's numbers and arrays, tuples and keys as jsonpickle writes them, and no others."""
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


def metrics_asked(paths: Iterable[str]) -> dict[str, list[str]]:
    """List the metrics that dotted paths ask for, each with the steps of its values, as written."""
    found: dict[str, list[str]] = {}
    for _, name, *rest in (path.split(".") for path in paths if path.startswith("summary.")):
        steps = found.setdefault(decode_key(name), [])
        steps += rest[1:] if rest[:1] == ["at"] else []
    return found


def complete_metrics(
    document: Document,
    read: Callable[[str], Sequence[Sequence[Any]]],
    names: Iterable[str],
    steps: Mapping[str, Sequence[str]],
) -> None:
    """Put summaries of metrics into a document, and their values at the steps asked for."""
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
    """Say why a run ended early: the error's own line, else the note about its end, else None."""
    trace = document.get("fail_trace")
    lines = trace if isinstance(trace, list) else [trace or ""]
    text = "".join(str(line) for line in lines).strip()
    if text:
        told = [line for line in text.splitlines() if line and not line[0].isspace()]
        return told[-1] if told else text.splitlines()[-1].strip()
    note = document.get("status_note")
    return str(note) if note else None


def _add_reasons(documents: Iterable[Document]) -> None:
    for document in documents:
        if (told := reason(document)) is not None:
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


# The same as the filter UNLISTED.
def _is_unlisted(document: Mapping[str, Any]) -> bool:
    return not document.get("summary") or MARKED in document or "run_uuid" not in document


# Sacred has stored NumPy's own numbers.
def _unpickle(documents: Iterable[Document]) -> None:
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
