"""Peak memory of a call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metatoolkit.hypergradients.replay_check import unchecked


class _StorageTracker(TorchDispatchMode):
    """Adds up the storages that operations allocate while they are alive.

    Args:
        phase: Names what is going on, for the peak of each phase.
    """

    def __init__(self, phase: Callable[[], str] = str) -> None:
        super().__init__()
        self.phase = phase
        self.peaks: dict[str, int] = {}
        self.alive: dict[int, int] = {}
        self.present = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), known)
        return result

    def _add(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in self.alive or key in known:
            return
        self.alive[key] = storage.nbytes()
        self.present += storage.nbytes()
        phase = self.phase()
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.present)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.present -= self.alive.pop(key)


def peak_memory(function: Callable[[], Any], device: torch.device | None = None) -> int:
    """Return the largest number of bytes that a call holds beyond what was there before.

    On a GPU it is the allocator's own figure; on the CPU the storages that operations return are
    added up as long as they are alive, scratch memory inside kernels left out. An estimator does
    not check its losses meanwhile, as in :func:`metatoolkit.diagnostics.measure.count_flops`.

    Args:
        function: Called once, without arguments.
        device: The device whose memory is looked at; ``None`` for the current GPU where one is in
            use, and else the CPU.
    """
    if device is None:
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    else:
        on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with unchecked():
            function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with unchecked(), _StorageTracker() as tracker:
        function()
    return max(tracker.peaks.values(), default=0)


def peak_memory_by(function: Callable[[], Any], phase: Callable[[], str]) -> dict[str, int]:
    """Return the largest number of bytes that a call's tensors hold in each of its phases.

    It counts as :func:`peak_memory` does on the CPU, wherever the tensors are.

    Args:
        function: Called once, without arguments.
        phase: Names what is going on; called at each allocation.
    """
    with unchecked(), _StorageTracker(phase) as tracker:
        function()
    return tracker.peaks
