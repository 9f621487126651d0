"""Figures of the application on few-shot classification across domains."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metatoolkit as mt
from metatoolkit.experiments.figures import draw_rows

if TYPE_CHECKING:
    import pandas


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
                axis.plot(series.index, series, color=f"C{index}", label=name, linewidth=1)
        axis.set(xlabel="step", ylabel=f"mean deviation of the {kind}", ylim=(0, None))
        axis.grid(alpha=0.3)
    shift.legend(fontsize="small")
    figure.savefig(path, dpi=120)
