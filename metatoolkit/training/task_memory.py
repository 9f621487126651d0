"""How many tasks run side by side in the memory that is available."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from metatoolkit.hypergradients.peak_memory import peak_memory
from metatoolkit.training.available_memory import available_memory

_SHARE = 0.5
"""Share of the available memory that is taken: kernels need some, and so do other processes."""
_FEW = 2


class TaskMemory:
    """How many tasks of a kind fit, found out before they run side by side.

    Two tasks are run, and the largest number of bytes that their tensors hold at once is that of
    more tasks in proportion. That errs on the safe side: what tasks share is counted for each of
    them. So where not all fit by that, those that do are run and measured, until little is left.

    Args:
        fitting: What is known: the number of tasks that fit, and the measurement, by their kind.
        devices: The devices of the problem.
    """

    def __init__(self, fitting: dict[str, tuple[int, str]], devices: set[torch.device]) -> None:
        self._fitting = fitting
        # Tensors that are large are on the accelerator where there is one.
        self._device = min(devices, key=lambda device: device.type == "cpu")

    def refuses_two(self, kind: str, alone: Callable[[], Any]) -> str | None:
        """Return why two tasks do not fit, if that is plain before they run.

        Args:
            kind: What the tasks are.
            alone: Runs one of them by itself.
        """
        if kind not in self._fitting:
            limit = self._limit()
            if limit is None:
                return None
            peak = peak_memory(alone, self._device)
            if _FEW * peak <= limit:
                return None
            self._fitting[kind] = (1, _told(1, peak, limit))
        at_once, why = self._fitting[kind]
        return why if at_once < _FEW else None

    def fitting(self, kind: str, run: Callable[[int], Any], count: int) -> tuple[int | None, str]:
        """Return how many tasks fit, and the measurement that says so.

        Args:
            kind: What the tasks are.
            run: Runs the first tasks side by side, given their number.
            count: Number of tasks that there are.

        Returns:
            The number, ``None`` where the available memory is not known or nothing was measured.
        """
        if kind not in self._fitting:
            limit = self._limit()
            if limit is None or count < _FEW:
                return None, ""
            self._fitting[kind] = self._measured(run, count, limit)
        return self._fitting[kind]

    def _measured(self, run: Callable[[int], Any], count: int, limit: int) -> tuple[int, str]:
        tasks, fewer, held = _FEW, 0, 0
        while True:
            peak = max(peak_memory(functools.partial(run, tasks), self._device), 1)
            if peak > limit:
                fits = fewer + (tasks - fewer) * (limit - held) // (peak - held)
            else:
                fits = tasks * limit // peak
            # Twice the tasks take twice the memory at most.
            if peak > 0.75 * limit or fits >= count:
                return fits, _told(tasks, peak, limit)
            fewer, held = tasks, peak
            tasks = min(max(fits, 2 * tasks), count)

    def _limit(self) -> int | None:
        available = available_memory(self._device)
        return None if available is None else int(_SHARE * available)


def _told(tasks: int, peak: int, limit: int) -> str:
    amount = "a task takes" if tasks == 1 else f"{tasks} tasks side by side take"
    return f"{amount} {peak / 2**20:.1f} MiB, and {limit / 2**20:.1f} MiB may be taken"
