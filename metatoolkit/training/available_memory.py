"""The memory that this process may still take on a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_GROUPS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the name of a hierarchy of control groups: files of limit and use, and what can be dropped."""


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take on a device.

    On the CPU, that is what the system says is available, or what is left of the limit of a
    control group where that is less: beyond it the system kills the process, and nothing raises.
    On a GPU it is what is free, and what PyTorch's allocator holds without use. Processes that
    torchrun started on this machine have equal shares.

    Args:
        device: The device.
        root: Folder of the file system with the files of the kernel.

    Returns:
        The number of bytes, or ``None`` where it is not known, as on other kinds of devices.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + held) // -(-processes // torch.cuda.device_count())
    if device.type != "cpu":
        return None
    found = [*_of_machine(root), *_of_groups(root)]
    return max(min(found), 0) // processes if found else None


def _of_machine(root: Path) -> Iterator[int]:
    for name, kilobytes in _numbers(root / "proc" / "meminfo").items():
        if name == "MemAvailable":
            yield 1024 * kilobytes


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what is left of each limit of the control groups that this process is in."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, hierarchy, path = line.split(":", 2)
        if hierarchy not in _GROUPS:
            continue
        limit, use, droppable = _GROUPS[hierarchy]
        mounted = root / "sys" / "fs" / "cgroup" / hierarchy
        group = mounted / path.lstrip("/")
        # In a container the path may be that of the host, and the group is what is mounted.
        for folder in {mounted, group, *(g for g in group.parents if mounted in g.parents)}:
            numbers = [_text(folder / name).strip() for name in (limit, use)]
            if all(number.isdigit() for number in numbers):
                cached = _numbers(folder / "memory.stat").get(droppable, 0)
                yield int(numbers[0]) - int(numbers[1]) + cached


def _numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number on each line."""
    lines = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
