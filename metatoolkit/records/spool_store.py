"""Runs that lie in the spool of this machine, read as if a database held them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from metatoolkit.errors import RecordsError
from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.expressions import REASON
from metatoolkit.records.fields import duration
from metatoolkit.records.files import file_blocks
from metatoolkit.records.metrics import MetricPush
from metatoolkit.records.push import shorten
from metatoolkit.records.spool import RunSpool, spooled_runs
from metatoolkit.records.stores import Document, Store, add_reasons, complete_metrics, steps_asked


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
        for spool in spooled_runs(home):
            if spool.uuid in known:
                continue
            try:
                self._documents.append(_as_stored(spool))
            except (RecordsError, OSError):
                # Pushed and deleted in this very moment, or damaged: `records doctor` tells.
                continue
            self._spools[spool.uuid] = spool

    @override
    def headers(self, prefilter: Mapping[str, Any], paths: Iterable[str]) -> list[Document]:
        self.complete(self._documents, paths)
        return list(self._documents)

    @override
    def complete(self, documents: list[Document], paths: Iterable[str]) -> None:
        asked = list(paths)
        if REASON in asked:
            add_reasons(documents)
        steps = steps_asked(asked)
        for document in documents:
            if "captured_out" in asked:
                self._add_output(document)
            complete_metrics(document, partial(self.metric, document), steps, steps)

    def _add_output(self, document: Document) -> None:
        output = self._spools[document["run_uuid"]].path / "cout.txt"
        if output.exists():
            document["captured_out"] = shorten(output.read_bytes())

    @override
    def documents(self, ids: list[Any], whole: bool = False) -> list[Document]:
        found = {document["_id"]: document for document in self._documents}
        chosen = [found[one] for one in ids if one in found]
        self.complete(chosen, ["captured_out"] if whole else [])
        return chosen

    @override
    def metric(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], ...]:
        entries = _values_of(self._spools[document["run_uuid"]]).logged(name)
        steps, values, times = ([entry[place] for entry in entries] for place in range(3))
        return steps, values, times

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
    metrics = spool.open_metrics()
    try:
        values = MetricPush(spool, metrics)
        values.read()
        return values
    finally:
        metrics.close()


def _as_stored(spool: RunSpool) -> Document:
    document = spool.read_document()
    summary = _values_of(spool).summary
    document["summary"] = {encode_key(name): one for name, one in summary.items()}
    # No database has given it a number: the beginning of its own id stands in.
    document["_id"] = spool.uuid[:8]
    document.setdefault("duration", duration(document))
    document["spooled"] = True
    return document
