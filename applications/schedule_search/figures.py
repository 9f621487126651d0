"""Figure of the search for schedules, drawn from the records of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.experiments.figures import draw_rows

if TYPE_CHECKING:
    import pandas

COURSES = {"lr": "learning rate", "momentum": "momentum", "weight_decay": "weight decay"}
"""Schedules that are drawn, with their names in words."""


def draw_search(
    frame: pandas.DataFrame, path: Path, *, accuracy: str, reached: Sequence[str], margin: float
) -> None:
    """Draw schedules before and after, and accuracy against what the search has spent.

    Curves are means over the seeds; the schedules' start is a dotted line. The legend of accuracies
    tells after how many inner steps a curve is as high as the best of some others at their ends,
    but for a margin.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
        accuracy: Column of the test accuracy.
        reached: Rows whose best end is to be reached.
        margin: What may be lacking, in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    panels: Any = [[*COURSES], ["curves", "curves", "bars"]]
    axes: dict[str, Any] = figure.subplot_mosaic(panels)
    runs = {str(label): list(part["run"]) for label, part in frame.groupby("row", sort=False)}
    curves = {label: _mean_curve(part) for label, part in runs.items()}
    best = max((curves[label].iloc[-1] for label in reached if label in curves), default=math.inf)
    needed: list[str] = []
    for number, (label, part) in enumerate(runs.items()):
        # There are ten colors.
        dashes = ("-", "--", "-.")[number // 10 % 3]
        style = {"color": f"C{number % 10}", "linestyle": dashes, "label": label}
        for name in COURSES:
            _draw_course(axes[name], part, name, style)
        curve = curves[label]
        axes["curves"].plot(curve.index, curve, marker="o", markersize=3, **style)
        enough = curve.index[curve >= best - margin]
        needed.append(f"{label}: {enough[0]:,.0f}" if len(enough) else f"{label}: –")
    for name, words in COURSES.items():
        axes[name].set(xlabel="inner step", ylabel=words)
        axes[name].grid(alpha=0.3)
    axes["lr"].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, fontsize="small")
    axes["curves"].set(
        xlabel="inner steps that the search has spent", ylabel="test accuracy, trained anew [%]"
    )
    axes["curves"].grid(alpha=0.3)
    if math.isfinite(best):
        title = f"inner steps to {best - margin:.1f} %"
        drawn = axes["curves"].lines
        axes["curves"].legend(
            drawn, needed, loc="lower right", title=title, ncols=2, fontsize="small"
        )
    draw_rows(axes["bars"], frame, accuracy)
    figure.savefig(path, dpi=120)


def _draw_course(axis: Any, runs: list[Any], name: str, style: dict[str, str]) -> None:
    """Draw the mean of a schedule over the runs that have it, and its start."""
    courses = [run.info["schedules"][name] for run in runs if name in run.info["schedules"]]
    if not courses:
        return
    horizon, start = runs[0].config["horizon"], runs[0].info["first_schedules"][name]
    for values, options in (
        ([sum(column) / len(column) for column in zip(*courses, strict=True)], style),
        (start, {"color": "black", "linestyle": ":"}),
    ):
        edges = [horizon * share / len(values) for share in range(len(values) + 1)]
        axis.plot(edges, [*values, values[-1]], drawstyle="steps-post", **options)


def _mean_curve(runs: list[Any]) -> pandas.Series:
    """Return the mean accuracy of runs in percent, by the mean of what they had spent by then."""
    import pandas

    spent, reached = (
        pandas.concat([run.metrics[name] for run in runs], axis=1).mean(axis=1)
        for name in ("inner_steps", "test_accuracy")
    )
    return pandas.Series(100 * reached.to_numpy(), index=spent.to_numpy())
