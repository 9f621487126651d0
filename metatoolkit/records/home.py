"""Where records live on this machine: the data directory and the folders inside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

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
