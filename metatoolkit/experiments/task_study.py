"""What studies of algorithms across tasks have in common: rows, costs and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metatoolkit.diagnostics.log_ticks import plain_log_ticks
from metatoolkit.experiments.figures import draw_rows, spans_decades
from metatoolkit.experiments.studies import Column, Row
from metatoolkit.records.comparison import literal

if TYPE_CHECKING:
    import pandas

ROWS = {
    "scratch": Row({"algorithm": "scratch"}),
    "MAML": Row({"algorithm": "maml"}),
    "MAML, learn2learn": Row({"algorithm": "maml", "library": "learn2learn"}),
    "first-order MAML": Row({"algorithm": "fomaml"}),
    # The whole way to the mean end of the inner steps.
    "Reptile": Row({"algorithm": "reptile", "meta_optimizer": "sgd", "meta_lr": 1.0}),
    "ANIL": Row({"algorithm": "anil"}),
    "Meta-SGD": Row({"algorithm": "meta_sgd"}),
    "MAML++": Row({"algorithm": "maml++"}),
    "WarpGrad": Row({"algorithm": "warpgrad"}),
}
"""Algorithms, without learning across tasks first."""

IN_DOUBLE = {
    f"{label}, float64": Row({**ROWS[label].updates, "dtype": "float64"})
    for label in ("MAML", "MAML, learn2learn")
}
"""The same MAML by two libraries, in a precision in which rounding hardly parts the trainings."""

MILLISECONDS = "ms/step"

COSTS = (
    Column("meta step [MFLOP]", "info.flops", 1e-6, 1, spread=False),
    Column("meta step [MiB]", "info.peak_memory_bytes", 2.0**-20, 1, spread=False),
    Column(MILLISECONDS, "info.milliseconds_per_step", 1.0, 1, spread=False),
)
"""What a meta step costs."""

NOTE = (
    "Learning rates are untuned, and the same in all rows but Reptile, whose outer step is SGD's."
)
"""Words below the table."""


def draw_scores(frame: pandas.DataFrame, path: Path, *, metric: str, header: str) -> None:
    """Draw each row's mean score over the seeds against meta steps and time, and the test scores.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
        metric: Metric of an evaluation while training, such as ``"valid_accuracy"``; rows
            without it, which learn nothing across tasks, have no curve.
        header: Column of the test score.
    """
    import pandas
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    curves, times, tests = figure.subplots(1, 3)
    scores: list[float] = []
    for index, (label, part) in enumerate(frame.groupby("row", sort=False)):
        series = [run.metrics[metric] for run in part["run"] if metric in run.metrics]
        if not series:
            continue
        mean = pandas.concat(series, axis=1).mean(axis=1)
        scores += [value for one in series for value in one]
        curves.plot(mean.index, mean, color=f"C{index}", label=literal(str(label)))
        for one in series:
            curves.plot(one.index, one, color=f"C{index}", linewidth=0.5, alpha=0.5)
        seconds = 1e-3 * part[MILLISECONDS].mean() * mean.index
        times.plot(seconds, mean, ".-", color=f"C{index}")
    curves.set(xlabel="meta step", ylabel=literal(metric.replace("_", " ")))
    times.set(xlabel="seconds of meta steps", xscale="log")
    plain_log_ticks(times.xaxis)
    for axis in (curves, times):
        axis.grid(alpha=0.3)
        if spans_decades(scores):
            axis.set_yscale("log")
            plain_log_ticks(axis.yaxis, span=0)
    figure.legend(loc="outside upper center", ncols=8, fontsize="small")
    draw_rows(tests, frame, header)
    figure.savefig(path, dpi=120)
