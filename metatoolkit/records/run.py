"""One recorded run, as queries return it."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import StorageError, UnknownNameError
from metatoolkit.records.clean import decode, decode_key
from metatoolkit.records.fields import Field, duration, value_at
from metatoolkit.records.home import process_lives
from metatoolkit.records.spool import utcnow
from metatoolkit.records.stores import Store
from metatoolkit.records.terminal import text

if TYPE_CHECKING:
    import pandas

DEAD_SECONDS = 120.0


class Run:
    """A run of the past, or one that still goes on.

    Args:
        document: The run's document, in Sacred's schema.
        store: Where metrics and artifacts are read from.
    """

    def __init__(self, document: Mapping[str, Any], store: Store) -> None:
        self.document = document
        self.store = store

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.experiment} {self.status}>"

    @property
    def id(self) -> Any:
        """The number in the database; the beginning of the uuid for a run in the spool."""
        return self.document["_id"]

    @property
    def key(self) -> Hashable:
        """The id where it can be a key, as numbers and text can; else the text that shows it."""
        return self.id if isinstance(self.id, Hashable) else text(self.id)

    @property
    def uuid(self) -> str | None:
        """The run's own id, which no database gave it."""
        return self.document.get("run_uuid")

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return str(section(self.document, "experiment").get("name", ""))

    @property
    def status(self) -> str:
        """COMPLETED, FAILED, INTERRUPTED, RUNNING, or PROBABLY_DEAD where nothing is heard."""
        return status_of(self.document)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, seed included."""
        return dict(decode(section(self.document, "config")))

    @property
    def result(self) -> Any:
        """What the main function returned."""
        return decode(self.document.get("result"))

    @property
    def info(self) -> dict[str, Any]:
        """What the run noted in ``_run.info``."""
        return dict(decode(section(self.document, "info")))

    @property
    def tags(self) -> list[str]:
        """The tags, shared with Omniboard."""
        tags = section(self.document, "omniboard").get("tags")
        return [str(tag) for tag in tags] if isinstance(tags, list) else []

    @property
    def notes(self) -> str:
        """The notes, shared with Omniboard."""
        return str(section(self.document, "omniboard").get("notes") or "")

    @property
    def output(self) -> str:
        """What the run printed, cut in the middle where it is longer than a megabyte."""
        return str(self._whole().get("captured_out") or "")

    @property
    def fail_trace(self) -> str:
        """The traceback of a failed run."""
        lines = self._whole().get("fail_trace")
        return "".join(str(line) for line in lines) if isinstance(lines, list) else str(lines or "")

    @property
    def metrics(self) -> Metrics:
        """The metric series, by name."""
        return Metrics(self)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts, by name."""
        entries = _named(self.document.get("artifacts"))
        return {name: Artifact(self, entry) for name, entry in entries.items()}

    @property
    def sources(self) -> dict[str, Artifact]:
        """The files of the program, by name, as they were when the run started."""
        entries = section(self._whole(), "experiment").get("sources")
        if isinstance(entries, list):
            # Sacred writes a pair.
            entries = [
                {"name": one[0], "file_id": one[1]}
                if isinstance(one, list) and len(one) == 2
                else one
                for one in entries
            ]
        return {name: Artifact(self, entry) for name, entry in _named(entries).items()}

    def value(self, field: Field) -> Any:
        """Read a field, with which the document was completed where that was needed."""
        if field.root == "status":
            return self.status
        if field.root == "duration" and "duration" not in self.document:
            return duration(self.document)
        return decode(value_at(self.document, field.path))

    def details(self) -> dict[str, Any]:
        """Return everything that is stored about the run, captured output included."""
        return dict(self._whole())

    def _whole(self) -> Mapping[str, Any]:
        found = self.store.documents([self.id], whole=True)
        return found[0] if found else self.document


class Metrics(Mapping[str, "pandas.Series[Any]"]):
    """The metrics of a run: ``metrics["valid_loss"]`` is a pandas Series over steps.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        names = [decode_key(name) for name in section(run.document, "summary")]
        names += _named(section(run.document, "info").get("metrics"))
        if run.document.get("unlisted_metrics"):
            names += sorted(run.store.metric_names(run.document))
        self._names = list(dict.fromkeys(names))

    def __getitem__(self, name: str) -> pandas.Series[Any]:
        return self._series(name, 1)

    def times(self, name: str) -> pandas.Series[Any]:
        """Say when each value was logged.

        Args:
            name: The metric.

        Returns:
            A Series of UTC times over steps.

        Raises:
            UnknownNameError: The run has no such metric.
        """
        return self._series(name, 2)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<Metrics {', '.join(self._names)}>"

    def _series(self, name: str, place: int) -> pandas.Series[Any]:
        import pandas

        if name not in self._names:
            raise UnknownNameError("metric", name, self._names)
        read = self._run.store.metric(self._run.document, name)
        return pandas.Series(read[place], index=pandas.Index(read[0], name="step"), name=name)


class Artifact:
    """A file that a run produced.

    Args:
        run: The run.
        entry: The file's entry in the run's document.
    """

    def __init__(self, run: Run, entry: Mapping[str, Any]) -> None:
        self._run = run
        self._entry = entry
        self.name = str(entry["name"])

    def __repr__(self) -> str:
        return f"<Artifact {self.name}>"

    def blocks(self) -> Iterator[bytes]:
        """Read the file block by block.

        Returns:
            Its bytes.
        """
        return self._run.store.content(self._run.document, self._entry)

    def read(self) -> bytes:
        """Read the file.

        Returns:
            Its bytes.

        Raises:
            RecordsError: It is not stored.
        """
        return b"".join(self.blocks())

    def save(self, directory: str | os.PathLike[str] = ".") -> Path:
        """Write the file into a directory, and never outside it, whatever its name says.

        Args:
            directory: The directory, created where it is missing.

        Returns:
            The path that was written.

        Raises:
            StorageError: It cannot be written.
        """
        base = Path(directory)
        parts = PurePosixPath(self.name.replace("\\", "/").replace("\0", "")).parts
        safe = [part for part in parts if part not in ("/", "//", "..", ".", "")]
        target = base.joinpath(*(safe or ["artifact"]))
        partial = None
        try:
            with writing(target):
                # A link that lies in the directory already could lead out of it.
                if base.resolve() not in target.resolve().parents:
                    raise StorageError(f"{target} leads out of {base}: not written")
                with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                    partial = Path(file.name)
                    file.writelines(self.blocks())
                partial.replace(target)
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)
        return target


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Guard the writing of a file: make its folder, and raise what fails as a StorageError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error


def status_of(document: Mapping[str, Any]) -> str:
    """Say how a run is doing: what it said last, or PROBABLY_DEAD where it is silent."""
    status = str(document.get("status", ""))
    if status != "RUNNING":
        return status
    lives = process_lives(section(document, "proc"))
    if lives is not None:
        # Its clock and ours may have been set since its last sign of life.
        return status if lives else "PROBABLY_DEAD"
    beat = document.get("heartbeat") or document.get("start_time")
    if not isinstance(beat, datetime.datetime):
        return "PROBABLY_DEAD"
    return "PROBABLY_DEAD" if abs((utcnow() - beat).total_seconds()) > DEAD_SECONDS else status


def section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read a part of a document that ought to be a dictionary, whoever wrote it."""
    found = document.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def _named(entries: Any) -> dict[str, Mapping[str, Any]]:
    """Read a list of dictionaries that have a name each, whoever wrote it."""
    listed = entries if isinstance(entries, list) else []
    named = [one for one in listed if isinstance(one, Mapping) and "name" in one]
    return {str(one["name"]): one for one in named}
