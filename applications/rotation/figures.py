"""Figure of the rotation application, drawn from the metrics of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metatoolkit.experiments.figures import draw_rows

if TYPE_CHECKING:
    import pandas

_ACCURACY = "rotated test images [%]"


def draw_angles(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the angle over the steps, a line for each seed, and the accuracies as bars.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`, with the accuracy on
            rotated test images in a column.
        path: File to write.
    """
    from matplotlib.figure import Figure

    # The angle of a baseline never moves.
    rows = [
        label
        for label, part in frame.groupby("row", sort=False)
        if any(run.metrics["angle_degrees"].abs().max() > 0 for run in part["run"])
    ]
    figure = Figure(figsize=(4 * (len(rows) + 1), 3.5), layout="constrained")
    *axes, bars = figure.subplots(1, len(rows) + 1)
    for axis, label in zip(axes, rows, strict=True):
        part = frame[frame["row"] == label]
        if axis is not axes[0]:
            # Before anything is drawn, so that the limits follow all panels.
            axis.sharey(axes[0])
        for seed, run in zip(part["seed"], part["run"], strict=True):
            axis.plot(run.metrics["angle_degrees"], linewidth=1, label=f"seed {seed}")
        axis.axhline(part["run"].iloc[0].config["degrees"], color="black", linestyle=":")
        axis.set(title=label, xlabel="step", ylabel="learned angle [°]")
        axis.grid(alpha=0.3)
    if rows:
        axes[0].legend(loc="lower right", fontsize="small")
    draw_rows(bars, frame, _ACCURACY)
    figure.savefig(path, dpi=120)
