"""The files of a run that goes on: appended to, lines of values, and room for last words."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metatoolkit.records.clean import INT64
from metatoolkit.records.home import private, storage_error
from metatoolkit.records.terminal import say

# What a forked child must put right: locks that nobody will free, and the run's own lock.
FORKED: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(FORKED):
        one.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class AppendedFile:
    """A file that only grows, and that keeps in memory what a full disk does not take.

    Threads may append at once; so may forked workers, whose lines go into the same file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten = b""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._failed = False
        self.after_fork()
        FORKED.add(self)

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

    def sync(self) -> None:
        """Have the system write to the disk what it has taken, as a power failure may come."""
        if self._descriptor < 0:
            return
        if self.unwritten:
            self.append(b"")
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            # No file of a disk, or closed meanwhile; anything else shows when it is written to.
            if error.errno not in (errno.EINVAL, errno.EBADF) and not self._failed:
                self._failed = True
                say(f"cannot write {self.path} ({error.strerror or error})")

    def lost(self) -> tuple[int, int]:
        """Say what only the memory holds.

        Returns:
            How many ends of lines, and how many bytes.
        """
        with self._lock:
            return self.unwritten.count(b"\n"), len(self.unwritten)

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
            # Not by its name: somebody may have deleted the folder.
            while offset + len(data) < stored and len(data) < wanted:
                most = min(wanted, stored - offset) - len(data)
                block = os.pread(self._descriptor, most, offset + len(data))
                if not block:
                    break
                data += block
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
        FORKED.discard(self)

    def after_fork(self) -> None:
        """Free the lock, which another thread may have held when the process was forked."""
        self._lock = threading.RLock()

    def _stored(self) -> int:
        return os.fstat(self._descriptor).st_size


LAST_WORDS = "last"
ROOM = 64 * 1024


def keep_room(folder: Path) -> None:
    """Keep the room.

    Args:
        folder: The run's folder.
    """
    with open(folder / LAST_WORDS, "wb", opener=private) as file:
        file.write(bytes(ROOM))


def write_last_words(folder: Path, words: dict[str, Any]) -> None:
    """Write what the run's document should say.

    Args:
        folder: The run's folder.
        words: Fields of the document; none, where it says all that there is.

    Raises:
        StorageError: Even that is not possible.
    """
    path = folder / LAST_WORDS
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


def read_last_words(folder: Path) -> dict[str, Any]:
    """Read what a run has said last.

    Args:
        folder: The run's folder.

    Returns:
        Fields that replace those of its document; none, as a rule.
    """
    try:
        line = (folder / LAST_WORDS).read_bytes().partition(b"\n")[0]
    except OSError:
        return {}
    if line[:1] != b"{":
        return {}
    try:
        words = json.loads(line, object_hook=decode_date)
    except ValueError:
        # Cut off while it was written over; the document is still there.
        return {}
    return words if isinstance(words, dict) else {}


def encode_date(value: object) -> dict[str, str]:
    """Write a date as JSON can hold it; what ``json.dump`` calls for what it does not know.

    Args:
        value: The date.

    Returns:
        A dictionary that no plain data can be mistaken for.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, datetime.datetime):
        return {"$date": value.isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode_date(value: dict[str, Any]) -> Any:
    """Undo :func:`encode_date`; what ``json.loads`` calls for every dictionary.

    Args:
        value: A dictionary.

    Returns:
        The date that it stands for, or the dictionary itself.
    """
    if len(value) == 1 and isinstance(value.get("$date"), str):
        return datetime.datetime.fromisoformat(value["$date"])
    return value


EARLIEST, LATEST = -62_000_000_000, 253_000_000_000
_EPOCH = datetime.datetime(1970, 1, 1)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def parse(lines: list[bytes], place: Path) -> list[list[Any]]:
    """Parse many lines in one call: the run pays for every moment that is spent here."""
    try:
        entries: list[list[Any]] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        entries = []
    if len(entries) == len(lines) and all(map(_is_entry, entries)):
        return entries
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if _is_entry(entry):
            entries.append(entry)
        else:
            say(f"{place} holds a damaged line of values, which is left out: {line[:200]!r}")
    return entries


def moment(seconds: float) -> datetime.datetime:
    """Write a time as the database keeps it."""
    return _EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))


def entries_of(document: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """List the values that a document of the database holds."""
    lists = [document.get(field, []) for field in ("steps", "values", "timestamps")]
    return zip(*lists, strict=False)


def content_of(document: Mapping[str, Any]) -> bytes:
    """Digest the values that a document of the database holds."""
    digest = hashlib.blake2b(digest_size=16)
    for step, value, when in entries_of(document):
        digest.update(fingerprint(step, value, when))
    return digest.digest()


def fingerprint(step: Any, value: Any, when: datetime.datetime) -> bytes:
    """Write a value so that no other one is written the same.

    Args:
        step: Its step.
        value: The value; NaN equals itself here.
        when: Its time.

    Returns:
        Bytes for a digest.
    """
    return repr((step, value, (when - _EPOCH) // _MILLISECOND)).encode()


def _is_entry(entry: Any) -> bool:
    return (
        type(entry) is list
        and len(entry) == 4
        and type(entry[0]) is str
        and _fits(entry[1])
        and _fits(entry[2])
        and isinstance(entry[3], int | float)
        and EARLIEST < entry[3] < LATEST
    )


def _fits(value: Any) -> bool:
    """Say whether the database can hold a number, or nested lists of them."""
    if type(value) is int:
        return -INT64 <= value < INT64
    return all(map(_fits, value)) if type(value) is list else isinstance(value, float | int)
