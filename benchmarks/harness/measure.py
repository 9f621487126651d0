"""Measuring: contenders take turns by processor time; what each holds, in a process of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import importlib.util
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.declared import Call, Case, Contender, Setup
from benchmarks.harness.registry import MODULES, find
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import MetatoolkitError
from metatoolkit.hypergradients import Hypergradient

FORWARD = "forward pass"
"""Under what the unit of all costs is recorded, which takes its turns with the contenders."""

LEAST_SECONDS, MOST_CALLS = 0.01, 50
"""A turn is as many calls as take so long, and not more than so many."""

_SLOW = (
    "sklearn.datasets",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
)
"""Modules that are imported late, and take seconds."""

Row = dict[str, Any]
Watch = Callable[[str, str, str], Row]


def installed(module: str) -> bool:
    """Tell whether a library can be imported.

    Args:
        module: Name of its module.
    """
    return importlib.util.find_spec(module) is not None


def built(contender: Contender, setup: Setup) -> Call:
    """Return what is called, with the warnings of a library's sources left out.

    Args:
        contender: The contender.
        setup: The problem.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return contender.build(setup)


def tensors_of(found: Any) -> Tensor:
    """Return a hypergradient as one vector in double precision.

    Args:
        found: What a contender returned.
    """
    parts = found.gradient.values() if isinstance(found, Hypergradient) else found
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def measure(
    benchmark: str, label: str, case: Case, rounds: int, draws: int, watch: Watch | None = None
) -> dict[str, Row]:
    """Measure all contenders of a case.

    Args:
        benchmark: Name of the benchmark.
        label: Label of the case.
        case: The case.
        rounds: Number of turns; where it is 1, the first call of each is timed.
        draws: Calls of a random contender for its error.
        watch: Measures what a contender holds; by default in a process of its own.

    Returns:
        For each contender, and for one forward pass: ``seconds`` of each turn, ``errors`` and
        ``cosines`` of each draw, passes as ``cost`` where they are told, ``flops`` in forward
        passes, ``peak_bytes`` of tensors and ``resident_bytes`` of the process. ``note`` says why
        something is not there, and ``missing`` which library.
    """
    setup = case.setup()
    rows: dict[str, Row] = {FORWARD: {}}
    calls: dict[str, Call] = {FORWARD: setup.forward}
    gradients: dict[str, list[Tensor]] = {}
    setup.forward()
    rows[FORWARD]["seconds"] = [_seconds(setup.forward, 1)]
    for name, contender in case.contenders.items():
        rows[name] = {}
        if contender.needs and not installed(contender.needs):
            rows[name]["missing"] = contender.needs
            continue
        try:
            call = built(contender, setup)
            begin = time.process_time()
            found = call()
            rows[name]["seconds"] = [time.process_time() - begin]
        except Exception as error:  # A row of its own, whatever it is: the others go on.
            rows[name] = {"note": _told(error)}
            continue
        calls[name] = call
        if isinstance(found, Hypergradient):
            rows[name]["cost"] = dataclasses.asdict(found.cost)
        gradients[name] = [tensors_of(found)]
        if contender.random:
            gradients[name] += [tensors_of(call(draw=draw)) for draw in range(1, draws)]
        del found
    _take_turns(calls, rows, rounds)
    _compare(gradients, rows, setup, case.reference)
    del setup, call
    calls.clear()
    watch = watch or in_own_process
    for name in [FORWARD, *gradients]:
        gc.collect()
        rows[name] |= watch(benchmark, label, name)
    unit = rows[FORWARD].get("flops") or math.nan
    for name in [FORWARD, *gradients]:
        rows[name]["flops"] = rows[name].get("flops", math.nan) / unit
    return rows


def _take_turns(calls: Mapping[str, Call], rows: dict[str, Row], rounds: int) -> None:
    """Time calls in turn, so that other work on the machine falls on all alike."""
    if rounds == 1:
        rows[FORWARD]["seconds"] = [_seconds(calls[FORWARD], MOST_CALLS)]
        return
    numbers = {}
    for name in calls:
        # What is set up, checked and chosen at the first call is no part of the time.
        first = max([*rows[name]["seconds"], 1e-6])
        numbers[name] = min(MOST_CALLS, math.ceil(LEAST_SECONDS / first))
        rows[name]["seconds"] = []
    # What is there by now is not looked through again before each turn.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                gc.collect()
                rows[name]["seconds"].append(_seconds(call, numbers[name]))
    finally:
        gc.unfreeze()


def _seconds(call: Call, number: int) -> float:
    begin = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - begin) / number


def _compare(
    gradients: Mapping[str, list[Tensor]], rows: dict[str, Row], setup: Setup, reference: str
) -> None:
    """Tell errors and cosines to what is right."""
    if not gradients:
        return
    base = gradients[reference if reference in gradients else next(iter(gradients))][0]
    right = base if setup.truth is None else tensors_of(setup.truth)
    size = right.norm().clamp_min(torch.finfo(torch.float64).tiny)
    for name, draws in gradients.items():
        stacked = torch.stack(draws)
        if stacked.shape[1:] != right.shape:
            rows[name]["note"] = f"it returned {stacked.shape[1]} numbers, not {len(right)}"
            continue
        rows[name]["errors"] = ((stacked - right).norm(dim=1) / size).tolist()
        rows[name]["mean_error"] = float((stacked.mean(0) - right).norm() / size)
        cosines = torch.nn.functional.cosine_similarity(stacked, right[None], dim=1, eps=1e-300)
        rows[name]["cosines"] = cosines.tolist()


def watched(benchmark: str, label: str, name: str) -> Row:
    """Return what one contender holds, and what operations it takes, from calls after the first.

    Args:
        benchmark: Name of the benchmark.
        label: Label of the case.
        name: Label of the contender, or the name of a forward pass.
    """
    torch.set_num_threads(1)
    # Looked through, the heap that a forked process shares would become its own.
    gc.freeze()
    case = find(benchmark).cases[label]
    setup = case.setup()
    call: Call = setup.forward if name == FORWARD else built(case.contenders[name], setup)
    try:
        if not case.counted:
            return _resident_growth(call)
        if case.rounds > 1:
            call()
        return {"peak_bytes": peak_memory(call), "flops": count_flops(call)}
    except Exception as error:  # It is right all the same: what watches it does not work.
        return {"note": f"operations and memory cannot be told: {_told(error)}"}


def _resident_growth(call: Call) -> Row:
    """Return what resident memory grows by in a call, and its peak (Linux)."""
    before = restart_peak()
    call()
    peak = resident("VmHWM")
    return {"resident_bytes": peak - before, "whole_bytes": peak}


def in_own_process(benchmark: str, label: str, name: str) -> Row:
    """Return what :func:`watched` does, from a process that measures nothing else.

    Args:
        benchmark: Name of the benchmark.
        label: Label of the case.
        name: Label of the contender.
    """
    context = multiprocessing.get_context("forkserver")
    # What the main module imports, too, since each process imports that.
    modules = ["benchmarks.harness.experiment", "benchmarks.harness.command"]
    modules += [*(f"benchmarks.{name}" for name in MODULES), *_SLOW]
    context.set_forkserver_preload(modules)
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(watched, benchmark, label, name).result()


def resident(entry: str) -> int:
    """Return the resident memory of this process, now (VmRSS) or at most (VmHWM), in bytes.

    Args:
        entry: Which of both.

    Raises:
        OSError: The system does not tell.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {entry}")


def restart_peak() -> int:
    """Forget the largest resident memory so far, and return the present one.

    Raises:
        OSError: The system does not let it.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def _told(error: Exception) -> str:
    """Return an error in one line."""
    told = str(error).partition("\n")[0]
    return told if isinstance(error, MetatoolkitError) else f"{type(error).__name__}: {told}"
