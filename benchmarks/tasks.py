"""Hypergradients of a batch of tasks, beside what is written by hand, and three libraries.

Run as ``python -m benchmarks.tasks``; it writes a table and a figure to ``docs/benchmarks``.
learn2learn, higher and TorchOpt (extra ``benchmarks``) are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import math
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import processor
from benchmarks.peers import installed
from benchmarks.task_problems import FAMILIES, METHODS, PEERS, Family
from metatoolkit.diagnostics.measure import peak_memory

_PEER = "learn2learn"
Rows = dict[str, dict[str, float]]

TEXT = """\
# Batches of tasks

One outer gradient of MAML: the mean over tasks, {steps} inner steps of SGD each, float32. Time is
processor time, the median of {repeats} calls; all methods take turns, and ratios are medians over
the turns. Peak memory is what tensors hold beyond what was there before the call, each method in a
process of its own. The difference is to the gradient that is written by hand, which `FirstOrder`
means to differ from.{missing}

{table}

![Time and memory of each method](tasks.png)

`Unrolled(T)` holds the graphs of all steps where they fit its memory budget, as they do here and as
the gradient by hand does. "One graph" is `Unrolled(T, keep_graphs=1)`, which computes each step but
the last a second time, and takes less memory. `"auto"` measures both ways in its first call, which
is not counted here.

Measured on {processor} with one thread, other work beside it, Python {python},
torch {torch}. `python -m benchmarks.tasks` measures again and writes this page.
"""


def compare(family: Family, repeats: int, names: Sequence[str]) -> Rows:
    """Measure methods in turn, and return what each takes.

    Args:
        family: The tasks.
        repeats: Number of calls of each method.
        names: The methods; the first one is the reference.
    """
    torch.manual_seed(0)
    calls = {name: METHODS[name](family) for name in names}
    # What is set up, checked and chosen at the first call is no part of the time.
    gradients = {name: torch.cat([g.flatten() for g in call()]) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    reference = gradients[names[0]]

    def ratio(name: str, other: str) -> float:
        # Rounds are paired, so that other work on the machine counts little.
        pairs = zip(seconds[name], seconds[other], strict=True)
        return statistics.median(own / its for own, its in pairs)

    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            # Rounds are paired, so that other work on the machine counts little.
            "ratio": ratio(name, names[0]),
            "to_peer": ratio(name, _PEER) if _PEER in calls else math.nan,
            "difference": float((gradients[name] - reference).norm() / reference.norm()),
        }
        for name in calls
    }


def memory(family: str, tasks: int, name: str) -> float:
    """Return the peak memory of a method's second call, in bytes.

    Args:
        family: Name of the tasks.
        tasks: Number of tasks.
        name: Name of the method.
    """
    torch.set_num_threads(1)
    call = METHODS[name](FAMILIES[family](tasks))
    call()
    return float(peak_memory(call))


def in_own_process(family: str, tasks: int, name: str) -> float:
    """Return what :func:`memory` does, from a process that measures nothing else.

    Args:
        family: Name of the tasks.
        tasks: Number of tasks.
        name: Name of the method.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.task_problems"])
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(memory, family, tasks, name).result()


def table(found: dict[str, Rows]) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        found: What :func:`compare` returned, by the title of the family.
    """
    lines = [
        f"| tasks | method | time (ms) | to by hand | to {_PEER} | peak memory (MiB) "
        "| difference |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for title, rows in found.items():
        for name, row in rows.items():
            lines.append(
                f"| {title} | {name} | {1e3 * row['seconds']:.1f} | {row['ratio']:.2f} "
                f"| {row['to_peer']:.2f} | {row['bytes'] / 2**20:.2f} "
                f"| {row['difference']:.0e} |"
            )
    return lines


def draw(found: dict[str, Rows], path: Path) -> None:
    """Draw time against peak memory of all methods, one panel for each family.

    Args:
        found: What :func:`compare` returned, by the title of the family, with memory.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            ours = name.startswith(("`U", "`F"))
            marker = ("oD" if ours else "sX")[number // 10 if ours else number % 2]
            axes.scatter(
                1e3 * row["seconds"],
                row["bytes"] / 2**20,
                color=f"C{number % 10}",
                marker=marker,
                label=name.replace("`", ""),
            )
        axes.set(xscale="log", yscale="log", xlabel="time (ms)", title=title)
        axes.set_ylabel("peak memory of tensors (MiB)")
        axes.grid(which="both", alpha=0.2)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the page.

    Args:
        argv: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sinusoids", type=int, default=100, help="number of sinusoid tasks")
    parser.add_argument("--images", type=int, default=16, help="number of tasks of images")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = list(METHODS)
    missing = [name for name, module in PEERS.items() if not installed(module)]
    for name in missing:
        print(f"{name} is not installed, and is left out", file=sys.stderr)
        names.remove(name)
    found: dict[str, Rows] = {}
    for family, count in (("sinusoids", arguments.sinusoids), ("images", arguments.images)):
        tasks = FAMILIES[family](count)
        rows = compare(tasks, arguments.repeats, names)
        for name, row in rows.items():
            row["bytes"] = in_own_process(family, count, name)
        found[tasks.title] = rows
        print("\n".join(table({tasks.title: rows})[2:]), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    page = TEXT.format(
        steps=tasks.steps,
        missing=f" {' and '.join(missing)} could not be installed there." if missing else "",
        repeats=arguments.repeats,
        table="\n".join(table(found)),
        processor=processor(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    (arguments.output / "tasks.md").write_text(page)
    draw(found, arguments.output / "tasks.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
