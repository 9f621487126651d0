"""The files of a run that goes on: appended to, and room for last words."""

from __future__ import annotations

import errno
import json
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from metatoolkit.records.clean import decode_date, encode_date
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
