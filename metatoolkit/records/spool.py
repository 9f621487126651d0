"""One folder per run on the local disk: the truth that the database is a copy of."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
import uuid as uuids
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metatoolkit.errors import StorageError
from metatoolkit.records.home import data_home, private_directory, storage_error

DOCUMENT = "run.json"
METRICS = "metrics.jsonl"
OUTPUT = "cout.txt"
LOCK = "lock"
FILES = "files"
VERIFIED = ".done-"

# What a forked child must put right: locks that nobody will free, and the run's own lock.
_FORKED: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_FORKED):
        one.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def utcnow() -> datetime.datetime:
    """Tell the time as the database stores it.

    Returns:
        The present time in UTC, without a time zone, cut to milliseconds.
    """
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def say(message: str) -> None:
    """Print one line for the user on stderr.

    Args:
        message: What happened and what follows from it.
    """
    print(f"metatoolkit: {message}", file=sys.stderr, flush=True)


class AppendedFile:
    """A file that only grows, and that keeps in memory what a full disk does not take.

    Threads may append at once; so may forked workers, whose lines go into the same file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten = b""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._failed = False
        self.after_fork()
        _FORKED.add(self)

    def append(self, data: bytes) -> None:
        """Write at once, or keep for the next attempt.

        Args:
            data: The bytes to add.
        """
        with self._lock:
            problem = self._append(data)
        # Only now: what is said may come back here, as captured output.
        if problem is not None:
            say(f"cannot write {self.path} ({problem}); what it lacks is kept in memory")

    def _append(self, data: bytes) -> str | None:
        if self.unwritten:
            data = self.unwritten + data
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self.unwritten = data
            if self._failed:
                return None
            self._failed = True
            return error.strerror or str(error)
        self.unwritten = data[written:]
        self._failed = self._failed and bool(self.unwritten)
        return None

    def size(self) -> int:
        """Say how much was appended.

        Returns:
            Bytes, those included that the disk did not take.
        """
        with self._lock:
            return self._stored() + len(self.unwritten)

    def read(self, offset: int, length: int = -1) -> bytes:
        """Read what was added from an offset on, also what the disk did not take.

        Args:
            offset: A position in the stream of everything that was appended.
            length: At most so many bytes; all of them by default.

        Returns:
            The bytes from there on.
        """
        with self._lock:
            stored = self._stored()
            wanted = stored + len(self.unwritten) - offset if length < 0 else length
            data = b""
            if offset < stored:
                with open(self.path, "rb") as file:
                    file.seek(offset)
                    data = file.read(min(wanted, stored - offset))
            start = max(0, offset - stored)
            return data + self.unwritten[start : start + wanted - len(data)]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._descriptor < 0:
                return
            if self.unwritten:
                self._append(b"")
            os.close(self._descriptor)
            self._descriptor = -1
        _FORKED.discard(self)

    def after_fork(self) -> None:
        """Free the lock, which another thread may have held when the process was forked."""
        self._lock = threading.RLock()

    def _stored(self) -> int:
        return os.fstat(self._descriptor).st_size


class RunSpool:
    """The folder of one run.

    Args:
        path: The folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, home: Path | None = None) -> RunSpool:
        """Make the folder of a new run and hold its lock.

        Args:
            home: The data directory.

        Returns:
            The spool, locked for as long as this process lives.

        Raises:
            StorageError: The folder cannot be written.
        """
        base = private_directory(spool_directory(home))
        uuid = uuids.uuid4().hex
        stamp = utcnow().strftime("%Y%m%d-%H%M%S")
        path = base / f"{stamp}-{uuid}"
        try:
            # Born under a hidden name and locked, so that nobody takes it for an abandoned run.
            hidden = base / f".{path.name}"
            (hidden / FILES).mkdir(mode=0o700, parents=True)
            spool = cls(hidden)
            spool.lock()
            hidden.rename(path)
        except OSError as error:
            raise storage_error(path, error) from error
        spool.path = path
        return spool

    @property
    def uuid(self) -> str:
        """The run's own id, which no server hands out."""
        return self.path.name.rpartition("-")[2]

    def lock(self) -> bool:
        """Try to become the only process that works on this run.

        Returns:
            Whether the lock is ours now; the system frees it when the process ends in any way.
        """
        if self._lock is not None:
            return True
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not (self.path / LOCK).exists():
            os.close(descriptor)
            return False
        self._lock = descriptor
        _FORKED.add(self)
        return True

    def unlock(self) -> None:
        """Let other processes work on this run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def after_fork(self) -> None:
        """Let go of the lock, or a worker that outlives the run would make it look alive."""
        self.unlock()

    def write_document(self, document: dict[str, Any]) -> None:
        """Replace the run's document in one step that a crash cannot tear.

        Args:
            document: Plain data, dates included.

        Raises:
            StorageError: The disk does not take it; the former document is still there.
        """
        temporary = self.path / f"{DOCUMENT}.new"
        try:
            with open(temporary, "w", encoding="utf-8", opener=_private) as file:
                json.dump(document, file, default=_encode_date)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / DOCUMENT)
        except OSError as error:
            raise storage_error(temporary, error) from error

    def read_document(self) -> dict[str, Any]:
        """Read the run's document.

        Returns:
            The document as it was last written.

        Raises:
            StorageError: It is missing or damaged.
        """
        path = self.path / DOCUMENT
        try:
            document = json.loads(path.read_text("utf-8"), object_hook=_decode_date)
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        if not isinstance(document, dict) or document.get("run_uuid") != self.uuid:
            raise StorageError(f"cannot read {path}: it is not the document of this run")
        return document

    def open_metrics(self) -> AppendedFile:
        """Open the file that holds one line per metric value.

        Returns:
            The file, which may be empty.
        """
        return AppendedFile(self.path / METRICS)

    def open_output(self) -> AppendedFile:
        """Open the file that holds the captured output.

        Returns:
            The file, which may be empty.
        """
        return AppendedFile(self.path / OUTPUT)

    def add_file(self, source: Path) -> tuple[str, int]:
        """Copy a file into the spool under the name of its content.

        Args:
            source: The file to keep.

        Returns:
            The SHA-256 of the content and its length.
        """
        digest = hashlib.sha256()
        size = 0
        temporary = self.path / FILES / f".{uuids.uuid4().hex}"
        try:
            with open(source, "rb") as reader, open(temporary, "wb", opener=_private) as writer:
                while block := reader.read(1 << 20):
                    digest.update(block)
                    size += len(block)
                    writer.write(block)
            temporary.replace(self.file(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def file(self, digest: str) -> Path:
        """Say where a kept file lies.

        Args:
            digest: What :meth:`add_file` returned.

        Returns:
            The path inside the spool.
        """
        return self.path / FILES / digest

    def remove(self) -> None:
        """Delete the folder, after everything in it has been verified in the database."""
        gone = self.path.with_name(f"{VERIFIED}{self.path.name}")
        self.path.rename(gone)
        shutil.rmtree(gone)
        self.path = gone


def spool_directory(home: Path | None = None) -> Path:
    """Say where the runs that are not yet in the database lie.

    Args:
        home: The data directory.

    Returns:
        The folder that holds one folder per run.
    """
    return data_home(home) / "spool"


def spooled_runs(home: Path | None = None) -> Iterator[RunSpool]:
    """List the runs in the spool, oldest first.

    Args:
        home: The data directory.

    Yields:
        One spool per run.
    """
    base = spool_directory(home)
    try:
        names = sorted(os.listdir(base))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise storage_error(base, error) from error
    for name in names:
        # A folder without a document died before its run began: there is nothing in it to keep.
        if name[0] != "." and (base / name / DOCUMENT).exists():
            yield RunSpool(base / name)


def sweep(home: Path | None = None) -> None:
    """Delete what a killed process left of folders that are empty, or verified in the database.

    Args:
        home: The data directory.
    """
    base = spool_directory(home)
    for path in base.glob(".*") if base.is_dir() else []:
        spool = RunSpool(path)
        verified = path.name.startswith(VERIFIED)
        if verified or (not (path / DOCUMENT).exists() and spool.lock()):
            shutil.rmtree(path, ignore_errors=True)
            spool.unlock()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _encode_date(value: object) -> dict[str, str]:
    if isinstance(value, datetime.datetime):
        return {"$date": value.isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not plain data")


def _decode_date(value: dict[str, Any]) -> Any:
    if len(value) == 1 and isinstance(value.get("$date"), str):
        return datetime.datetime.fromisoformat(value["$date"])
    return value
