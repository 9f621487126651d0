"""Memory and time of hypergradients through long trajectories, beside higher and TorchOpt.

Run as ``python -m benchmarks.trajectory``; it writes a table and a figure to ``docs/benchmarks``.
The peers come with the extra ``benchmarks`` (``pip install -e .[benchmarks]``).
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.machine import processor
from benchmarks.peers import higher_hypergradient, installed, torchopt_hypergradient
from benchmarks.trajectory_problems import (
    BATCH,
    LR,
    MOMENTUM,
    ExampleWeights,
    Rates,
    batches,
    convolutional_network,
    learned_rate,
    perceptron,
    plain_loss,
    weighted_loss,
    weighting_problem,
)
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.hypergradients.kept_graphs import MEMORY_BUDGET


def ours(steps: int, **arguments: Any) -> Callable[[], Tensor]:
    problem = weighting_problem()
    inner = mt.inner.SGD(lr=LR, momentum=MOMENTUM)
    state = inner.init(problem)
    train, valid = batches(steps)
    estimator = Unrolled(steps, **arguments)
    return lambda: estimator(problem, inner, state, train, valid).gradient["logits"]


def highers(steps: int) -> Callable[[], Tensor]:
    problem = weighting_problem()
    train, valid = batches(steps)
    return lambda: higher_hypergradient(problem, train, valid, LR, MOMENTUM)[1][0]


def torchopts(steps: int) -> Callable[[], Tensor]:
    train, valid = batches(steps)

    def call() -> Tensor:
        # Its steps change the module in place.
        problem = weighting_problem()
        return torchopt_hypergradient(problem, train, valid, LR, MOMENTUM)[1][0]

    return call


PEERS = {"higher": "higher", "TorchOpt": "torchopt"}
"""Names of the peers, and of their modules."""

METHODS: dict[str, Callable[[int], Callable[[], Tensor]]] = {
    "higher": highers,
    "TorchOpt": torchopts,
    "Unrolled": ours,
    "Unrolled, one graph": lambda steps: ours(steps, keep_graphs=1),
    "Unrolled, sqrt": lambda steps: ours(steps, checkpoint="sqrt"),
    "Unrolled, tree": lambda steps: ours(steps, checkpoint="tree"),
    "Unrolled, mixed mode": lambda steps: ours(steps, product="forward_over_reverse"),
}


SHORT = ("TorchOpt", "Unrolled, sqrt", "Unrolled, mixed mode")
"""Methods that are left out of the longest trajectories, to save time."""


def compare(steps: int, repeats: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Measure all methods in turn, ``repeats`` times, and return the least time of each."""
    calls = {name: METHODS[name](steps) for name in names}
    found: dict[str, dict[str, float]] = {name: {"seconds": float("inf")} for name in names}
    gradients = {}
    for name in names:
        # What is set up at the first call of a method is no part of its time.
        METHODS[name](1)()
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            begin = time.process_time()
            gradients[name] = call()
            found[name]["seconds"] = min(found[name]["seconds"], time.process_time() - begin)
    reference = gradients[names[0]]
    for name, call in calls.items():
        gap = (gradients[name] - reference).norm() / reference.norm()
        found[name]["difference"] = float(gap)
        gc.collect()
        found[name]["bytes"] = peak_memory(call)
    return found


def long_run(kind: str, steps: int, results: Any) -> None:
    """Take a long trajectory in a process of its own; put its growth in bytes and its seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learned = kind == "forward"
    meta: nn.Module = Rates() if learned else ExampleWeights()
    if learned:
        inner = mt.inner.SGD(
            lr=learned_rate(0),
            momentum=learned_rate(1),
            weight_decay=learned_rate(2),
        )
    else:
        inner = mt.inner.SGD(lr=LR, momentum=MOMENTUM)
    problem = mt.BilevelProblem(
        perceptron(), meta, plain_loss if learned else weighted_loss, plain_loss
    )
    state = inner.init(problem)

    def run(count: int) -> None:
        train, valid = batches(count, 32)
        estimator = ForwardMode(count) if learned else Unrolled(count, checkpoint="tree", arity=22)
        estimator(problem, inner, state, train, valid)

    run(5)
    before = restart_peak()
    begin = time.process_time()
    run(steps)
    seconds = time.process_time() - begin
    peak = resident("VmHWM")
    results.put({"bytes": peak - before, "total": peak, "seconds": seconds})


def resident(entry: str) -> int:
    """Return the resident memory of this process, now (VmRSS) or at most (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {entry}")


def restart_peak() -> int:
    """Forget the largest resident memory so far, and return the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def in_process(kind: str, steps: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=long_run, args=(kind, steps, results))
    process.start()
    found = results.get()
    process.join()
    return found


def table(found: dict[int, dict[str, dict[str, float]]], peer: str | None) -> list[str]:
    lines = [
        "| T | method | difference | peak memory (MiB) | to higher | time (s) | to higher |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for steps, rows in found.items():
        for name, row in rows.items():
            ratios = ["", ""]
            if peer is not None:
                other = rows[peer]
                ratios = [
                    f"1/{other['bytes'] / row['bytes']:.1f}",
                    f"{row['seconds'] / other['seconds']:.2f}",
                ]
            lines.append(
                f"| {steps} | {name} | {row['difference']:.0e} | {row['bytes'] / 2**20:.1f} "
                f"| {ratios[0]} | {row['seconds']:.2f} | {ratios[1]} |"
            )
    return lines


def draw(found: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    names = list(next(iter(found.values())))
    for name in names:
        steps = [count for count, rows in found.items() if name in rows]
        rows = [found[count][name] for count in steps]
        memory.plot(steps, [row["bytes"] / 2**20 for row in rows], marker="o", label=name)
        seconds.plot(
            steps, [1e3 * r["seconds"] / n for r, n in zip(rows, steps, strict=True)], marker="o"
        )
    memory.set(xscale="log", yscale="log", xlabel="inner steps T", ylabel="peak memory (MiB)")
    seconds.set(xscale="log", xlabel="inner steps T", ylabel="time per step (ms)", ylim=(0, None))
    memory.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=7)
    figure.savefig(path, dpi=150)


TEXT = """\
# Long trajectories

A convolutional network ({parameters:,} parameters) on inputs of MNIST's shape, batches of {batch},
SGD with momentum, one weight per training example as λ, float32. Peak memory is what tensors hold
beyond what was there before the call; time is processor time, the least of {repeats} calls, of one
where T > 100. `higher` keeps one graph of all steps, as TorchOpt does; the difference is to its
hypergradient. Recomputing each step once takes 4/3 of its passes.

{table}

![Memory and time by the number of inner steps](trajectory.png)

`Unrolled` keeps the graphs of the last steps as far as they fit its memory budget of {budget} MiB,
and "one graph" is `keep_graphs=1`: it keeps all states, θ and its velocity, where `higher` keeps
the activations of each step, too, so that the ratio of memory tends to that of the two. `sqrt` and
`tree` (of arity 8) keep few states. On this network the mixed mode takes more time than the double
backward and holds more: PyTorch's forward mode carries each tangent next to its tensor.

{long}

Measured on {processor} with one thread, other work beside it, Python {python}, torch {torch},
{peer}. `python -m benchmarks.trajectory` measures again and writes this page.
"""


def long_text(steps: int) -> str:
    rows = []
    for kind, name, count in (
        ("forward", "`ForwardMode(T)`, three hyper-parameters of SGD", 10),
        ("forward", "`ForwardMode(T)`, three hyper-parameters of SGD", steps),
        ("tree", '`Unrolled(T, checkpoint="tree", arity=22)`, a weight per example', 10),
        ("tree", '`Unrolled(T, checkpoint="tree", arity=22)`, a weight per example', steps),
    ):
        found = in_process(kind, count)
        print(f"{name}, T={count}: grows by {found['bytes'] / 2**20:.0f} MiB", flush=True)
        rows.append(
            f"| {name} | {count:,} | {found['bytes'] / 2**20:.0f} | {found['total'] / 2**20:.0f} "
            f"| {found['seconds']:.1f} |"
        )
    return "\n".join(
        [
            "A perceptron 784-32-10 on batches of 32, in a process of its own: what its resident "
            "memory\ngrows by beyond a call with T = 5, and its whole peak, PyTorch included.",
            "",
            "| estimator | T | growth (MiB) | whole process (MiB) | time (s) |",
            "|---|---:|---:|---:|---:|",
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 50, 500])
    parser.add_argument("--long", type=int, default=10_000, help="steps of the long runs")
    parser.add_argument("--repeats", type=int, default=4, help="fewer are taken where T > 100")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, versions = list(METHODS), []
    for name, module in PEERS.items():
        if not installed(module):
            print(
                f"{name} is not installed, and is left out; install the extra: "
                "pip install -e '.[benchmarks]'",
                file=sys.stderr,
            )
            names.remove(name)
        else:
            versions.append(f"{name} {importlib.metadata.version(module)}")
    peer = "higher" if "higher" in names else None
    found = {}
    for steps in arguments.steps:
        chosen = [name for name in names if steps <= 100 or name not in SHORT]
        found[steps] = compare(steps, 1 if steps > 100 else arguments.repeats, chosen)
        for line in table({steps: found[steps]}, peer)[2:]:
            print(line, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(found, arguments.output / "trajectory.png")
    page = TEXT.format(
        parameters=sum(p.numel() for p in convolutional_network().parameters()),
        batch=BATCH,
        repeats=arguments.repeats,
        budget=MEMORY_BUDGET // 2**20,
        table="\n".join(table(found, peer)),
        long=long_text(arguments.long),
        processor=processor(),
        python=platform.python_version(),
        torch=torch.__version__,
        peer=", ".join(versions) or "no peer",
    )
    (arguments.output / "trajectory.md").write_text(page)


if __name__ == "__main__":
    main()
