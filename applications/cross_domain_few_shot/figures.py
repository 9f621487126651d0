"""Figures of the application on few-shot classification across domains."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metatoolkit as mt
from metatoolkit.experiments.figures import draw_rows
from metatoolkit.records.comparison import literal
from metatoolkit.records.table import half_width

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


def write(trainer: mt.MetaTrainer, folder: Path, method: str) -> list[Path]:
    """Write the standard deviations of the transforms as a figure and a table.

    Args:
        trainer: The trained trainer.
        folder: Where to write.
        method: Name for the title.

    Returns:
        The files: ``transforms.png``, quartiles over the channels of each layer, and
        ``transforms.csv`` (layer, channel, deviation of scale and of shift).
    """
    from matplotlib.figure import Figure

    transforms: Any = trainer.problem.meta
    found = {
        name: [deviation.detach().cpu() for deviation in layer.deviations()]
        for name, layer in transforms.layers().items()
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, place, kind in zip(axes, (0, 1), ("scale γ", "shift β"), strict=True):
        axis.boxplot([values[place].tolist() for values in found.values()])
        axis.set_xticks(range(1, len(found) + 1), list(found), rotation=30, ha="right")
        axis.set(ylabel=f"standard deviation of the {kind}", title=method, ylim=(0, None))
    picture, table = folder / "transforms.png", folder / "transforms.csv"
    figure.savefig(picture, dpi=120)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "channel", "scale", "shift"])
        for name, (scale, shift) in found.items():
            for channel, values in enumerate(zip(scale.tolist(), shift.tolist(), strict=True)):
                writer.writerow([name, channel, *values])
    return [picture, table]


def draw_comparison(frame: pandas.DataFrame, path: Path) -> None:
    """Draw accuracies of the methods, and how the transforms' strengths moved.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    accuracy, scale, shift = figure.subplots(1, 3)
    draw_rows(accuracy, frame, "test accuracy [%]")
    for axis, kind in ((scale, "scale"), (shift, "shift")):
        for index, (label, part) in enumerate(frame.groupby("row", sort=False)):
            for number, run in enumerate(part["run"]):
                series = run.metrics[f"{kind}_deviation"]
                name = str(label) if number == 0 else None
                # Metrics count outer steps, which differ in length.
                each = run.config["steps"] / series.index[-1]
                steps = series.index * each
                axis.plot(steps, series, color=f"C{index}", label=name, linewidth=1)
        axis.set(xlabel="inner step", ylabel=f"mean deviation of the {kind}", ylim=(0, None))
        axis.grid(alpha=0.3)
    shift.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    figure.savefig(path, dpi=120)


def draw_strength(frame: pandas.DataFrame, path: Path) -> None:
    """Draw accuracy and outer loss against the strength, and the slopes of each horizon.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`; its columns
            "slope by θ, …" and "slope in all, …" are drawn in a panel each.
        path: File to write.
    """
    from matplotlib.figure import Figure

    labels = list(frame["row"].unique())
    figure = Figure(figsize=(15, 4), layout="constrained")
    accuracy, loss, by_theta, in_all = figure.subplots(1, 4)
    _draw_means(accuracy, frame, "test accuracy [%]", labels, color="black")
    _draw_means(loss, frame, "outer loss", labels, color="black")
    for axis, words in ((by_theta, "slope by θ"), (in_all, "slope in all")):
        headers = [header for header in frame.columns if str(header).startswith(words)]
        for number, header in enumerate(headers):
            _draw_means(
                axis,
                frame,
                header,
                labels,
                0.15 * number,
                color=f"C{number}",
                label=str(header).rpartition(", ")[2],
            )
        axis.axhline(0, color="black", linewidth=1)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylabel("dL / d log(strength) · 1000")
        axis.legend(fontsize="small", loc="lower right")
    by_theta.sharey(in_all)
    by_theta.set_title("through θ alone, as gradients have it", fontsize="medium")
    in_all.set_title("with running statistics, as ES has it", fontsize="medium")
    figure.savefig(path, dpi=120)


def _draw_means(
    axis: Axes,
    frame: pandas.DataFrame,
    header: str,
    labels: Sequence[str],
    offset: float = 0.0,
    **options: Any,
) -> None:
    """Draw a column's means over seeds with 95 % intervals, a place for each row."""
    for place, label in enumerate(labels):
        values = frame.loc[frame["row"] == label, header].astype(float).dropna()
        if values.empty:
            continue
        half = half_width(values) if len(values) > 1 else None
        axis.errorbar(place + offset, values.mean(), yerr=half, fmt="o", capsize=3, **options)
        # One entry of the legend for all rows.
        options.pop("label", None)
    places = range(len(labels))
    axis.set_xticks(places, [literal(label) for label in labels], rotation=30, ha="right")
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set(xlabel="deviation of γ, of β", ylabel=literal(f"{header}: mean, 95 %"))
    axis.grid(alpha=0.3)
