"""Hypergradients of a batch of tasks, beside a hand-written ``torch.func.vmap`` and learn2learn.

Run as ``python -m benchmarks.tasks``; it writes a table to ``docs/benchmarks``. learn2learn is
left out where it is not installed.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import processor
from benchmarks.peers import installed
from benchmarks.task_problems import METHODS, Family, images, sinusoids
from metatoolkit.diagnostics.measure import peak_memory

Rows = dict[str, dict[str, float]]

TEXT = """\
# Batches of tasks

One outer gradient of MAML: the mean over tasks, {steps} inner steps of SGD each, float32. Time is
processor time, the median of {repeats} calls; all methods take turns. Peak memory is what tensors
hold beyond what was there before the call. The difference is to the gradient that is written by
hand, which `FirstOrder` means to differ from.

{table}

"Graphs kept" is `Unrolled(T, keep_graphs=T)`, which holds the graphs of all steps, as the gradient
by hand does; `Unrolled(T)` computes each step but the last a second time, and holds the graph of
one. `"auto"` measures both ways in its first call, which is not counted here.

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
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            # Rounds are paired, so that other work on the machine counts little.
            "ratio": statistics.median(
                own / other for own, other in zip(seconds[name], seconds[names[0]], strict=True)
            ),
            "bytes": float(peak_memory(call)),
            "difference": float((gradients[name] - reference).norm() / reference.norm()),
        }
        for name, call in calls.items()
    }


def table(found: dict[str, Rows]) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        found: What :func:`compare` returned, by the title of the family.
    """
    lines = [
        "| tasks | method | time (ms) | to by hand | peak memory (MiB) | difference |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for title, rows in found.items():
        for name, row in rows.items():
            lines.append(
                f"| {title} | {name} | {1e3 * row['seconds']:.1f} | {row['ratio']:.2f} "
                f"| {row['bytes'] / 2**20:.1f} | {row['difference']:.0e} |"
            )
    return lines


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
    if not installed("learn2learn"):
        print("learn2learn is not installed, and is left out", file=sys.stderr)
        names.remove("learn2learn")
    found: dict[str, Rows] = {}
    for family in (sinusoids(arguments.sinusoids), images(arguments.images)):
        found[family.title] = compare(family, arguments.repeats, names)
        print("\n".join(table({family.title: found[family.title]})[2:]), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    page = TEXT.format(
        steps=family.steps,
        repeats=arguments.repeats,
        table="\n".join(table(found)),
        processor=processor(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    (arguments.output / "tasks.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
