"""Which process this is, and whether one that was noted down still lives."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
