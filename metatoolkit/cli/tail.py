"""Following a run while it goes on, as it prints and logs: `metatoolkit runs tail`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metatoolkit.cli.arguments import command
from metatoolkit.errors import QueryError, RecordsError
from metatoolkit.records.clean import decode_key
from metatoolkit.records.metrics import parse
from metatoolkit.records.push import shorten
from metatoolkit.records.query import Database, connect
from metatoolkit.records.run import Run, section, status_of
from metatoolkit.records.spool import METRICS, OUTPUT, RunSpool, spooled_runs
from metatoolkit.records.terminal import harmless, text

SPOOL_SECONDS = 0.2
DATABASE_SECONDS = 2.0


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    tail = command(commands, "tail", "follow a run that goes on", tail_run)
    tail.add_argument("id", metavar="ID", nargs="?", help="the run; default the newest that runs")
    tail.add_argument("--metric", action="append", help="only this metric; may be repeated")
    tail.add_argument("--quiet", action="store_true", help="metrics only, not what it prints")


def tail_run(options: argparse.Namespace) -> int:
    """Follow a run until it ends.

    Args:
        options: The command line.

    Returns:
        0 if it was completed, else 1.
    """
    with connect() as database:
        run = database[options.id] if options.id else _running(database)
        follower = Follower(database, run, names=options.metric, output=not options.quiet)
        for news in follower.news():
            if news.metric is None:
                print(harmless(news.value, keep="\n\t\r"), end="", flush=True)
            else:
                print(
                    f"{text(news.metric)}  step {text(news.step)}  {text(news.value)}", flush=True
                )
    print(f"run {text(run.id)}: {text(follower.status)}")
    return 0 if follower.status == "COMPLETED" else 1


def _running(database: Database) -> Run:
    for run in database.find("status == 'RUNNING'").sort("-start_time").limit(1):
        return run
    raise QueryError("no run goes on; name one to see what it printed")


class News(NamedTuple):
    """Something new of a run.

    Args:
        metric: The metric; None for output.
        step: The step of its value.
        value: The value, or the text.
    """

    metric: str | None
    step: Any
    value: Any


class Follower:
    """Reads what is new of a run, from its spool on this machine or else from the database.

    Args:
        database: The database.
        run: The run.
        home: The data directory.
        names: The metrics to follow; all by default.
        output: Whether to follow the output.
    """

    def __init__(
        self,
        database: Database,
        run: Run,
        home: Path | None = None,
        names: Sequence[str] | None = None,
        output: bool = True,
    ) -> None:
        self._database = database
        self._run = run
        self._home = home
        self._names = names
        self._output = output
        self._printed = b""
        self._offset = 0
        self._logged: dict[str, int] = {}
        self.status = run.status

    def news(self) -> Iterator[News]:
        """Follow the run until it has ended.

        Yields:
            What it has printed and logged; the end of the last one is when it has ended.
        """
        while True:
            spool = self._spool()
            try:
                yield from self._from_spool(spool) if spool is not None else self._from_database()
            except OSError:
                # It was completed, pushed and deleted in this moment: the database has the rest.
                if spool is None or spool.path.exists():
                    raise
                self.status = "RUNNING"
            if self.status != "RUNNING":
                return
            time.sleep(SPOOL_SECONDS if spool is not None else DATABASE_SECONDS)

    def _spool(self) -> RunSpool | None:
        for spool in spooled_runs(self._home):
            if spool.uuid == self._run.uuid:
                return spool
        return None

    def _from_spool(self, spool: RunSpool) -> Iterator[News]:
        self.status = status_of(spool.read_document())
        if self._output:
            yield from self._text(_read(spool.path / OUTPUT, len(self._printed)))
        data = _read(spool.path / METRICS, self._offset)
        end = data.rfind(b"\n") + 1
        self._offset += end
        for name, step, value, _ in parse(data[:end].splitlines(), spool.path):
            self._logged[name] = self._logged.get(name, 0) + 1
            if self._wanted(name):
                yield News(name, step, value)

    def _from_database(self) -> Iterator[News]:
        found = self._run.store.documents([self._run.id], whole=True)
        if not found:
            raise RecordsError(f"run {self._run.id} has been deleted")
        document = found[0]
        self.status = status_of(document)
        if self._output:
            # The database has the output without overwritten progress bars, and not the middle of
            # a very long one: what is new is what follows the part that is the same.
            output = str(document.get("captured_out") or "")
            same = _same(shorten(self._printed), output)
            self._printed = output[:same].encode("utf-8")
            yield from self._text(output[same:].encode("utf-8"))
        self._run.store.complete([document], ["summary"])
        for key, entry in section(document, "summary").items():
            name = decode_key(key)
            seen = self._logged.get(name, 0)
            count = entry.get("count", 0) if isinstance(entry, dict) else 0
            if count > seen and self._wanted(name):
                steps, values, _ = self._run.store.metric(document, name)
                self._logged[name] = len(values)
                for step, value in list(zip(steps, values, strict=False))[seen:]:
                    yield News(name, step, value)

    def _text(self, data: bytes) -> Iterator[News]:
        if data:
            self._printed += data
            yield News(None, None, data.decode("utf-8", "replace"))

    def _wanted(self, name: str) -> bool:
        return self._names is None or name in self._names


def _same(former: str, now: str) -> int:
    if now.startswith(former):
        return len(former)
    pairs = enumerate(zip(former, now, strict=False))
    shorter = min(len(former), len(now))
    return next((position for position, (one, other) in pairs if one != other), shorter)


def _read(path: Path, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        # The folder is being deleted, or its disk took no more: there is nothing new here.
        return b""
