"""This machine: where records live on it, files that grow, and which processes still live."""

from __future__ import annotations

import errno
import os
import platform
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metatoolkit.errors import StorageError
from metatoolkit.records.terminal import say

HOME_VARIABLE = "METATOOLKIT_HOME"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MACHINE = Path("/etc/machine-id")
_NAMESPACE = Path("/proc/self/ns/pid")
# What a forked child must put right: locks that nobody will free, and the run's own lock.
FORKED: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(FORKED):
        one.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def data_home(home: str | os.PathLike[str] | None = None) -> Path:
    """Say which directory holds the spool and the managed database.

    Args:
        home: A directory that overrules the environment.

    Returns:
        ``home``, else ``METATOOLKIT_HOME``, else the user's data directory
        (``$XDG_DATA_HOME/metatoolkit`` or ``~/.local/share/metatoolkit`` on Linux).

    Raises:
        StorageError: It belongs to another user.
    """
    given = os.fspath(home) if home is not None else os.environ.get(HOME_VARIABLE)
    if given:
        path = Path(given).expanduser().absolute()
    else:
        import platformdirs

        path = Path(platformdirs.user_data_dir("metatoolkit", appauthor=False)).absolute()
    check_owner(path, root=True)
    return path


def check_owner(path: Path, root: bool = False) -> None:
    """Refuse what another user may have planted.

    Args:
        path: A file or a directory, or a link to one; it need not exist.
        root: Whether it may belong to root, as a mounted folder does.

    Raises:
        StorageError: It belongs to somebody else.
    """
    trusted = {os.geteuid(), 0} if root else {os.geteuid()}
    try:
        owners = {path.lstat().st_uid, path.stat().st_uid}
    except OSError:
        # It is not there, or out of reach: whoever uses it says so.
        return
    if not owners <= trusted:
        raise storage_error(path, PermissionError(errno.EPERM, "it belongs to another user"))


def private_directory(path: Path) -> Path:
    """Create a directory that only its owner can enter, and missing parents; return it.

    Raises:
        StorageError: The directory cannot be created or written.
    """
    try:
        # pathlib gives created parents the usual permissions, and they hold the records too.
        for missing in reversed([one for one in path.parents if not one.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        check_owner(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise storage_error(path, PermissionError(errno.EACCES, "Permission denied"))
    return path


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read; an ``opener`` for Python's ``open``."""
    return os.open(path, flags, 0o600)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Explain a failure of the file system in one line that names the remedy."""
    reason = error.strerror or str(error)
    return StorageError(
        f"cannot write {path}: {reason}. Set {HOME_VARIABLE} to a directory that you may write."
    )


class AppendedFile:
    """A file that only grows, and that keeps in memory what a full disk does not take.

    Threads may append at once; so may forked workers, whose lines go into the same file. Offsets
    and sizes count all that was appended, what the disk did not take included.

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
        """Write at once, or keep for the next attempt."""
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
        """Say how many ends of lines, and how many bytes, only the memory holds."""
        with self._lock:
            return self.unwritten.count(b"\n"), len(self.unwritten)

    def size(self) -> int:
        """Say how many bytes were appended."""
        with self._lock:
            return self._stored() + len(self.unwritten)

    def read(self, offset: int, length: int = -1) -> bytes:
        """Read from an offset on, at most so many bytes; all of them by default."""
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


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """Identify this process, or another one, so that others can tell whether it still lives.

    Returns:
        ``pid``, ``user``, where the process lives (``host``, ``machine``, ``boot``, ``namespace``)
        and when it started: in seconds since 1970, and in a count that no clock changes.

    Raises:
        psutil.NoSuchProcess: There is no such process.
    """
    import psutil

    number = os.getpid() if pid is None else pid
    return {
        "pid": number,
        "user": os.getuid() if hasattr(os, "getuid") else None,
        "started": psutil.Process(number).create_time(),
        "ticks": _ticks(number, ending=True),
        **_place(),
    }


def process_lives(identity: Mapping[str, Any], ending: bool = False) -> bool | None:
    """Say whether a process still exists.

    Args:
        identity: What :func:`process_identity` returned.
        ending: Whether one counts that has ended and waits for its parent, or for its threads.

    Returns:
        True or False, or None for one of another host or container.
    """
    import psutil

    here = _place()
    if identity.get("host") != here["host"]:
        return None
    told = {name: identity.get(name) or here[name] for name in here}
    if told["machine"] != here["machine"]:
        return None
    if told["boot"] != here["boot"]:
        # The machine has been started anew.
        return False
    if told["namespace"] != here["namespace"]:
        return None
    try:
        pid = int(identity.get("pid", -1))
        # A pid comes back for another process; its start does not.
        ticks = identity.get("ticks")
        if ticks is not None:
            return _ticks(pid, ending) == ticks
        started = psutil.Process(pid).create_time()
        return abs(started - float(identity.get("started", started))) < 2.0
    except (psutil.NoSuchProcess, ValueError, TypeError, OverflowError):
        return False


def same_kernel(identity: Mapping[str, Any]) -> bool:
    """Say whether locks on files tell from here if a process lives, maybe in a container."""
    boot = _place()["boot"]
    return bool(boot) and identity.get("boot") == boot


def _place() -> dict[str, str]:
    try:
        namespace = os.readlink(_NAMESPACE)
    except OSError:
        namespace = ""
    return {
        "host": platform.node(),
        "machine": _read(_MACHINE),
        "boot": _read(_BOOT),
        "namespace": namespace,
    }


def _ticks(pid: int, ending: bool = False) -> int | None:
    """Say when a process started, in ticks since the machine did; None where nothing tells."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    # The name of the program, in parentheses, may hold anything.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or (fields[0] in "ZX" and not ending):
        return None
    return int(fields[19])


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
