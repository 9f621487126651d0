"""Peak memory, floating-point operations and time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from metatoolkit.hypergradients.flop_counter import flop_counter
from metatoolkit.hypergradients.peak_memory import peak_memory as peak_memory
from metatoolkit.hypergradients.peak_memory import peak_memory_by as peak_memory_by
from metatoolkit.hypergradients.replay_check import unchecked


def count_flops(function: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matrix products and convolutions in a call.

    It is what each call takes: an estimator does not evaluate a loss once more meanwhile, as its
    first call does to check that the loss can be evaluated again.

    Args:
        function: Called once, without arguments.
    """
    with unchecked(), flop_counter() as counter:
        function()
    return counter.get_total_flops()


def least_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the least time of several calls.

    On the CPU it is processor time of this process, which other processes do not add to; where a
    GPU is in use it is the time until its work is done.

    Args:
        function: Called ``repeats`` times, without arguments.
        repeats: Number of calls, at least 1.
    """
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = []
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        started = clock()
        function()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return min(seconds)
