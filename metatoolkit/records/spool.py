"""One folder per run on the local disk: the truth that the database is a copy of."""

from __future__ import annotations

import datetime
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metatoolkit.errors import StorageError
from metatoolkit.records.clean import decode_date, encode_date, utc
from metatoolkit.records.home import (
    FORKED,
    AppendedFile,
    check_owner,
    data_home,
    private,
    private_directory,
    storage_error,
)

DOCUMENT = "run.json"
METRICS = "metrics.jsonl"
OUTPUT = "cout.txt"
LOCK = "lock"
FILES = "files"
LAST_WORDS = "last"
VERIFIED = ".done-"
ROOM = 64 * 1024
BIRTHS = 20


def utcnow() -> datetime.datetime:
    """Tell the time as the database keeps it."""
    return utc(datetime.datetime.now(datetime.UTC))


class RunSpool:
    """The folder of one run.

    Args:
        path: The folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, home: Path | None = None, uuid: str | None = None) -> RunSpool:
        """Make the folder of a run, new or of a given id, locked for as long as this process lives.

        Raises:
            StorageError: The folder cannot be written.
        """
        base = private_directory(spool_directory(home))
        missing: OSError = FileNotFoundError(errno.ENOENT, "it is deleted as soon as it is made")
        for _ in range(BIRTHS):
            stamp = utcnow().strftime("%Y%m%d-%H%M%S")
            path = base / f"{stamp}-{uuid or uuids.uuid4().hex}"
            try:
                # Born under a hidden name and locked, so that nobody takes it for an abandoned run.
                hidden = base / f".{path.name}"
                (hidden / FILES).mkdir(mode=0o700, parents=True)
                spool = cls(hidden)
                if spool.lock():
                    with open(hidden / LAST_WORDS, "wb", opener=private) as room:
                        room.write(bytes(ROOM))
                    hidden.rename(path)
                    spool.path = path
                    _sync(base)
                    return spool
            except FileNotFoundError as error:
                missing = error
            except OSError as error:
                raise storage_error(path, error) from error
            # Another process has swept the folder in the moment before it was locked.
        raise storage_error(path, missing) from missing

    @property
    def uuid(self) -> str:
        """The run's own id, which no server hands out."""
        return self.path.name.rpartition("-")[2]

    def lock(self) -> bool:
        """Try to become the only process that works on this run, until this process ends."""
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
        FORKED.add(self)
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
        """Replace the run's document, plain data with dates, in one step that no crash can tear.

        Raises:
            StorageError: The disk does not take it; the former document is still there.
        """
        temporary = self.path / f"{DOCUMENT}.new"
        try:
            with open(temporary, "w", encoding="utf-8", opener=private) as file:
                json.dump(document, file, default=encode_date)
                file.flush()
                os.fsync(file.fileno())
            # The files first that it names.
            _sync(self.path / FILES)
            temporary.replace(self.path / DOCUMENT)
            _sync(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise storage_error(temporary, error) from error

    def write_last_words(self, words: dict[str, Any]) -> None:
        """Write fields of the document into the room that was kept for them; none, to be silent.

        Raises:
            StorageError: Even that is not possible.
        """
        path = self.path / LAST_WORDS
        data = json.dumps(words, default=encode_date).encode() + b"\n" if words else b"\0"
        try:
            if len(data) > ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # Over what is there already: a full disk has no other room.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                written = os.pwrite(descriptor, data, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if written < len(data):
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        except OSError as error:
            raise storage_error(path, error) from error

    def read_document(self) -> dict[str, Any]:
        """Read the run's document as it was last written, with its last words.

        Raises:
            StorageError: It is missing or damaged.
        """
        path = self.path / DOCUMENT
        try:
            document = json.loads(path.read_text("utf-8"), object_hook=decode_date)
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        if not isinstance(document, dict) or document.get("run_uuid") != self.uuid:
            raise StorageError(f"cannot read {path}: it is not the document of this run")
        try:
            line = (self.path / LAST_WORDS).read_bytes().partition(b"\n")[0]
            words = json.loads(line, object_hook=decode_date) if line[:1] == b"{" else {}
        except (OSError, ValueError):
            # Cut off while they were written over; the document is still there.
            words = {}
        return {**document, **words}

    @functools.cached_property
    def metrics(self) -> AppendedFile:
        """The file that holds one line per metric value, open."""
        return AppendedFile(self.path / METRICS)

    @functools.cached_property
    def output(self) -> AppendedFile:
        """The file that holds the captured output, open."""
        return AppendedFile(self.path / OUTPUT)

    def close(self) -> None:
        """Close both, as far as they were opened, for good."""
        for name in ("metrics", "output"):
            if name in self.__dict__:
                self.__dict__[name].close()

    def add_file(self, source: Path) -> tuple[str, int]:
        """Copy a file into the spool; return the SHA-256 of the content, and its length."""
        digest = hashlib.sha256()
        size = 0
        temporary = self.path / FILES / f".{uuids.uuid4().hex}"
        try:
            with open(source, "rb") as reader, open(temporary, "wb", opener=private) as writer:
                while block := reader.read(1 << 20):
                    digest.update(block)
                    size += len(block)
                    writer.write(block)
                writer.flush()
                os.fsync(writer.fileno())
            temporary.replace(self.file(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def file(self, digest: str) -> Path:
        """Say where the file lies for which :meth:`add_file` has returned a digest."""
        return self.path / FILES / digest

    def remove(self) -> None:
        """Delete the folder, which is empty, or everything in it was verified in the database."""
        gone = self.path.with_name(f"{VERIFIED}{self.path.name}")
        try:
            self.path.rename(gone)
            shutil.rmtree(gone)
        except FileNotFoundError:
            # Somebody has deleted it already.
            return
        self.path = gone


def spool_directory(home: Path | None = None) -> Path:
    """Say where the folders of the runs lie that are not yet in the database."""
    return data_home(home) / "spool"


def spooled_runs(home: Path | None = None) -> Iterator[RunSpool]:
    """List the runs in the spool, oldest first."""
    base = spool_directory(home)
    check_owner(base)
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
    """Delete what a killed process left of folders that are empty, or verified in the database."""
    base = spool_directory(home)
    for path in base.glob(".*") if base.is_dir() else []:
        spool = RunSpool(path)
        if path.name.startswith(VERIFIED):
            shutil.rmtree(path, ignore_errors=True)
        elif not (path / DOCUMENT).exists() and spool.lock():
            # Under another name, or a run that is being born here could lock what is left of it.
            spool.remove()
            spool.unlock()


def _sync(directory: Path) -> None:
    """Have a power failure find the names of new files in a directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
