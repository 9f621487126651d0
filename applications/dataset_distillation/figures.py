"""Figures of dataset distillation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metatoolkit.experiments.figures import draw_rows
from metatoolkit.records.comparison import literal

if TYPE_CHECKING:
    import pandas


def write(images: Tensor, per_class: int, path: Path) -> Path:
    """Draw images, a column for each class.

    Args:
        images: Images of shape (classes · per_class, channels, height, width), class by class; of
            several channels the mean is drawn.
        per_class: Images of a class.
        path: File to write.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure

    grays = images.detach().cpu().mean(dim=1)
    columns = len(grays) // per_class
    figure = Figure(figsize=(columns, 1.1 * per_class), layout="constrained")
    axes = figure.subplots(per_class, columns, squeeze=False)
    _draw_images(axes, grays.tolist(), per_class)
    figure.savefig(path, dpi=120)
    return path


def draw_comparison(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the images of the first seed of each row, where they are few, and accuracies.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`, with the test accuracy in
            a column.
        path: File to write.
    """
    from matplotlib.figure import Figure

    shown = {
        str(label): run
        for label, run in frame.drop_duplicates("row")[["row", "run"]].itertuples(index=False)
        if "images" in run.info and run.config["per_class"] <= 5
    }
    heights = [run.config["per_class"] for run in shown.values()]
    figure = Figure(figsize=(14, 1.5 + 0.75 * sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    left, right = parts
    if shown:
        panels: Any = left.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)
        for (label, run), panel, count in zip(shown.items(), panels.flat, heights, strict=True):
            panel.suptitle(literal(label), fontsize="small")
            images = run.info["images"]
            axes = panel.subplots(count, len(images) // count, squeeze=False)
            _draw_images(axes, images, count)
    draw_rows(right.subplots(), frame, "test accuracy [%]", interval=True)
    figure.savefig(path, dpi=120)


def _draw_images(axes: Any, images: list[Any], per_class: int) -> None:
    """Draw images class by class, each in a column of its class, on one scale of gray."""
    values = [value for image in images for line in image for value in line]
    for place, image in enumerate(images):
        axis = axes[place % per_class][place // per_class]
        axis.imshow(image, cmap="gray", vmin=min(values), vmax=max(values))
        axis.set_axis_off()
