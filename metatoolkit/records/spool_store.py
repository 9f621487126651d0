"""Runs that lie in the spool of this machine, read as if a database held them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.clean import decode_key, encode_key
from metatoolkit.records.completion import (
    REASON,
    add_reason,
    complete_metrics,
    condition_paths,
    steps_asked,
)
from metatoolkit.records.fields import duration
from metatoolkit.records.files import file_blocks
from metatoolkit.records.matching import matches
from metatoolkit.records.metric_copy import MetricCopy
from metatoolkit.records.push import shorten
from metatoolkit.records.spool import RunSpool, spooled_runs

_EPOCH = datetime.datetime(1970, 1, 1)


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
            paths: Dotted paths of what is asked for.

        Returns:
            Whole documents, oldest first.
        """
        every = [*paths, *condition_paths(condition)]
        self.complete(self._documents, every)
        return [document for document in self._documents if matches(document, condition)]

    def first(self, condition: Mapping[str, Any], path: str) -> dict[str, Any] | None:
        """Look for a run that has something.

        Args:
            condition: A filter.
            path: A dotted path.

        Returns:
            One such run; None where there is none.
        """
        found = self.headers(condition, [path])
        return found[0] if found else None

    def complete(self, documents: list[dict[str, Any]], paths: Iterable[str]) -> None:
        """Put into documents what is asked for and not stored in them.

        Args:
            documents: Documents of the spool, which are changed.
            paths: Dotted paths of what is asked for.
        """
        asked = list(paths)
        steps = steps_asked(asked)
        for document in documents:
            if REASON in asked:
                add_reason(document)
            if "captured_out" in asked:
                self._add_output(document)
            if steps:
                read = partial(self._values, document)
                complete_metrics(document, read, steps, steps)

    def _values(self, document: Mapping[str, Any], name: str) -> tuple[list[Any], list[Any]]:
        steps, values, _ = self.metric(document, name)
        return steps, values

    def _add_output(self, document: dict[str, Any]) -> None:
        output = self._spools[document["run_uuid"]].path / "cout.txt"
        if output.exists():
            document["captured_out"] = shorten(output.read_bytes())

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
                self._add_output(document)
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
        """Return the names of all metrics of a run whose document does not list them.

        Args:
            document: The run.

        Returns:
            The names.
        """
        return [decode_key(name) for name in document["summary"]]

    def has_metric(self, name: str) -> bool:
        """Say whether any run has a metric.

        Args:
            name: The metric.

        Returns:
            Whether one has.
        """
        return name in self.all_metric_names()

    def all_metric_names(self) -> set[str]:
        """Return the names of the metrics of all runs.

        Returns:
            The names.
        """
        return {decode_key(name) for document in self._documents for name in document["summary"]}

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
