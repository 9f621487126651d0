"""This machine: where records live on it, who may write there, and which processes still live."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metatoolkit.errors import StorageError

HOME_VARIABLE = "METATOOLKIT_HOME"


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
    """Create a directory that only its owner can enter.

    Args:
        path: The directory; missing parents are created too.

    Returns:
        The same path.

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
    """Open a file that only its owner can read; an ``opener`` for Python's ``open``.

    Args:
        path: The file.
        flags: How to open it.

    Returns:
        The descriptor.
    """
    return os.open(path, flags, 0o600)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Explain a failure of the file system in one line that names the remedy.

    Args:
        path: What could not be read or written.
        error: What the operating system said.

    Returns:
        The error to raise.
    """
    reason = error.strerror or str(error)
    return StorageError(
        f"cannot write {path}: {reason}. Set {HOME_VARIABLE} to a directory that you may write."
    )


_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MACHINE = Path("/etc/machine-id")
_NAMESPACE = Path("/proc/self/ns/pid")


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """Identify a process so that others can tell whether it still lives.

    Args:
        pid: A process of this machine; this one by default.

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
        True or False, or None for one of another host or container, which cannot be seen from here.
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
    """Say whether a process runs, or ran, on this machine since it was started, if in a container.

    Args:
        identity: What :func:`process_identity` returned.

    Returns:
        Whether locks on files tell from here whether it lives.
    """
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
