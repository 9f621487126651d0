"""Figures that several applications draw: curves of one run, rows of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metatoolkit.diagnostics.log_ticks import plain_log_ticks
from metatoolkit.errors import optional_import
from metatoolkit.experiments.claims import paired_difference
from metatoolkit.records.comparison import literal
from metatoolkit.records.table import half_width

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


def draw_curves(history: Iterable[tuple[str, float, int]], path: Path) -> Path:
    """Draw each metric of a run over the steps, losses, scores and the others apart.

    Args:
        history: Name, value and step, as :attr:`metatoolkit.MetaTrainer.history` holds them.
        path: File to write.

    Returns:
        The file.
    """
    with optional_import("a figure"):
        from matplotlib.figure import Figure

    curves: dict[str, tuple[list[int], list[float]]] = {}
    for name, value, step in history:
        steps, values = curves.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    panels: dict[str, list[str]] = {"loss": [], "score": [], "other": []}
    for name in curves:
        score = name.endswith(("accuracy", "f1", "score"))
        panels["loss" if name.endswith("loss") else "score" if score else "other"].append(name)
    panels = {label: names for label, names in panels.items() if names}
    figure = Figure(figsize=(4 * max(1, len(panels)), 3.5), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axis, (label, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            axis.plot(*curves[name], label=literal(name.replace("_", " ")), linewidth=1)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        # Above the axes, where no curve is; Matplotlib takes long to look for a place among them.
        axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def draw_rows(axis: Axes, frame: pandas.DataFrame, header: str, interval: bool = False) -> None:
    """Draw one column of a study: mean and standard deviation of each row, a point for each seed.

    Args:
        axis: Where to draw.
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        header: The column.
        interval: Whether the 95 % interval of the mean takes the place of the deviation.
    """
    groups = frame.groupby("row", sort=False)[header]
    places = range(len(groups))
    half = (groups.agg(half_width) if interval else groups.std(ddof=1)).fillna(0)
    axis.errorbar(groups.mean(), places, xerr=half, fmt="o", color="tab:blue", capsize=3)
    for place, (_, values) in zip(places, groups, strict=True):
        axis.plot(values, [place + 0.25] * len(values), "k.", markersize=4)
    axis.grid(axis="x", alpha=0.3)
    if spans_decades(frame[header]):
        axis.set_xscale("log")
        plain_log_ticks(axis.xaxis, span=0)
    else:
        # More numbers of several digits than this overlap.
        axis.locator_params(axis="x", nbins=6)
    axis.set_yticks(list(places), [literal(str(label)) for label in groups.groups])
    axis.invert_yaxis()
    spread = "95 % interval" if interval else "deviation"
    axis.set(xlabel=literal(f"{header}: mean, {spread}, seeds"))


def spans_decades(values: Iterable[float]) -> bool:
    """Return whether values are to be drawn on a logarithmic axis: one would hide the others.

    Args:
        values: The values; those that are missing or not finite do not count.

    Returns:
        Whether all of them are positive, and the largest more than a hundred times the least.
    """
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and 0 < 100 * min(finite) < max(finite)


def mark_margin(axis: Axes, margin: float) -> None:
    """Mark the differences that do not matter; those beyond are drawn on a logarithmic scale.

    Args:
        axis: Where differences are drawn along x.
        margin: The largest difference that does not matter.
    """
    axis.axvspan(-margin, margin, color="tab:green", alpha=0.15)
    axis.set_xscale("symlog", linthresh=margin)
    axis.xaxis.set_major_formatter("{x:g}")


def draw_differences(
    frame: pandas.DataFrame,
    path: Path,
    reference: str,
    score: str,
    costs: Sequence[str],
    margin: float | None = None,
) -> None:
    """Draw each row's difference to one of them with its interval, and beside it what it costs.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
        reference: Label of the row that the others are compared with.
        score: Column whose differences are drawn, paired by seed.
        costs: Columns that are drawn as multiples of the reference's mean.
        margin: The largest difference that does not matter, for a band.
    """
    from matplotlib.figure import Figure

    labels = list(frame["row"].unique())
    means = frame.groupby("row", sort=False)[list(costs)].mean()
    figure = Figure(figsize=(5 + 2.5 * len(costs), 1.5 + 0.32 * len(labels)), layout="constrained")
    ratios = [1.6, *(1.0 for _ in costs)]
    axes = figure.subplots(1, 1 + len(costs), sharey=True, gridspec_kw={"width_ratios": ratios})
    axes = [axes] if not costs else list(axes)
    for place, label in enumerate(labels):
        found = paired_difference(frame, label, reference, score)
        if label == reference or found is None:
            continue
        half = [[found.mean - found.low], [found.high - found.mean]] if found.pairs > 1 else None
        axes[0].errorbar(found.mean, place, xerr=half, fmt="o", color="tab:blue", capsize=3)
    axes[0].axvline(0, color="black", linewidth=1)
    if margin is not None:
        mark_margin(axes[0], margin)
    axes[0].set_yticks(range(len(labels)), [literal(str(label)) for label in labels])
    axes[0].invert_yaxis()
    axes[0].set(xlabel=literal(f"{score}:\ndifference to {reference}, 95 %"))
    axes[0].grid(alpha=0.3)
    for axis, header in zip(axes[1:], costs, strict=True):
        axis.barh(range(len(labels)), means[header] / means[header][reference], alpha=0.6)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xlabel=literal(f"{header}\n/ {reference}"))
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
