"""A benchmark's page: what is measured, the table and the figures, from recorded runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.declared import Benchmark
from benchmarks.harness.figures import draw
from benchmarks.harness.table import frame_of, table
from metatoolkit.errors import optional_import

if TYPE_CHECKING:
    from metatoolkit.records import Run

HOW = """\
Contenders take turns in one process. Time is processor time of a call: the median of {rounds}
turns, and the quartiles in parentheses; ratios are taken turn by turn, to the one whose ratio is 1.
F is a forward pass of the training loss over one batch, timed in the same turns. The floor is what
a call takes of operations in matrix products and convolutions, in F: time in F is what it takes in
all, and what of it is above the floor is anything else. {memory}"""

TENSORS = (
    "Memory is what tensors hold at most beyond what was there before the call, each contender "
)
TENSORS += "in a process of its own."
RESIDENT = "Memory is what the resident memory of a process grows by in a call."


def write(benchmark: Benchmark, runs: Mapping[str, Run], folder: Path) -> Path:
    """Write the page, and the figures beside it.

    Args:
        benchmark: The benchmark.
        runs: The run of each case, by label; cases without one are left out.
        folder: Where to.

    Returns:
        The page.
    """
    with optional_import("the figures of a benchmark"):
        import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    frame = frame_of(benchmark, runs)
    rounds = sorted({run.config["rounds"] for run in runs.values()})
    uncounted = [label for label in runs if not benchmark.cases[label].counted]
    memory = RESIDENT if len(uncounted) == len(runs) else TENSORS
    if uncounted and memory is TENSORS:
        memory += f" That of {', '.join(uncounted)} is what resident memory grows by in a call."
    how = HOW.format(rounds=" or ".join(map(str, rounds)), memory=memory)
    parts = [f"# {benchmark.title}", "", _wrapped(benchmark.about), "", _wrapped(how), ""]
    figures = draw(benchmark, frame, folder)
    if benchmark.told:
        for label in runs:
            parts += [f"## {label}", "", _wrapped(benchmark.told.get(label, "")), ""]
            parts += table(frame[frame["case"] == label], with_case=False)
            parts += [f"![{label}]({path.name})\n" for path in figures.get(label, [])]
    else:
        parts += table(frame, with_case=True)
        parts += [f"![{benchmark.title}]({p.name})\n" for part in figures.values() for p in part]
    lacking = [label for label in benchmark.cases if label not in runs]
    if lacking:
        parts += [_wrapped(f"Not measured here: {', '.join(lacking)}."), ""]
    if benchmark.after:
        parts += ["\n\n".join(map(_wrapped, benchmark.after.split("\n\n"))), ""]
    machines = list(dict.fromkeys(run.info["machine"] for run in runs.values()))
    ids = ", ".join(str(run.id) for run in runs.values())
    again = f"`scripts/benchmark {benchmark.name}` measures again and writes this page."
    parts += [_wrapped(f"Measured on {'; '.join(machines)} (runs {ids}). {again}"), ""]
    path = folder / f"{benchmark.name}.md"
    path.write_text("\n".join(parts))
    return path


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
