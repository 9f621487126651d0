"""Scores and figures of the weights that data hyper-cleaning learns."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatoolkit.errors import optional_import
from metatoolkit.experiments.figures import draw_rows
from metatoolkit.records.comparison import literal

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

BINS = 20
_KINDS = {"clean": "tab:blue", "corrupted": "tab:red"}


def detection(weights: Tensor, corrupted: Tensor, threshold: float) -> dict[str, float]:
    """Return how well weights below a threshold tell wrong labels.

    Args:
        weights: Weight of each training example, (examples,).
        corrupted: Which have a wrong label, bool, of the same shape.
        threshold: Weight below which an example is called corrupted.

    Returns:
        ``precision`` (share of wrong labels among those that are called so), ``recall`` (share of
        the wrong labels that are), ``f1``, their harmonic mean, and the mean weights,
        ``weight_clean`` and ``weight_corrupted``. Precision is 0 where no example is called so;
        what has no example is left out.
    """
    with optional_import("precision and recall"):
        from sklearn.metrics import precision_recall_fscore_support

    scores = {}
    if corrupted.any():
        called = (weights < threshold).numpy()
        truth = corrupted.numpy()
        found = precision_recall_fscore_support(truth, called, average="binary", zero_division=0)
        scores = dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))
    for name, part in _by_kind(weights, corrupted).items():
        if len(part):
            scores[f"weight_{name}"] = float(part.mean())
    return scores


def histograms(weights: Tensor, corrupted: Tensor) -> dict[str, list[float]]:
    """Return which share of the clean and of the corrupted examples has a weight of each bin.

    Args:
        weights: As for :func:`detection`.
        corrupted: Likewise.

    Returns:
        Shares in bins of equal width from 0 to 1, by ``"clean"`` and ``"corrupted"``.
    """
    found = {}
    for name, part in _by_kind(weights, corrupted).items():
        counts = torch.histc(part.double(), bins=BINS, min=0.0, max=1.0)
        found[name] = (counts / max(1, len(part))).tolist()
    return found


def write(weights: Tensor, corrupted: Tensor, folder: Path, method: str) -> list[Path]:
    """Write the learned weights as a figure and a table.

    Args:
        weights: As for :func:`detection`.
        corrupted: Likewise.
        folder: Where to write.
        method: Name for the title.

    Returns:
        The files: ``weights.png`` and ``weights.csv`` (weight, corrupted) of the training examples.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    _draw_histograms(figure.subplots(), histograms(weights, corrupted), method)
    picture, table = folder / "weights.png", folder / "weights.csv"
    figure.savefig(picture, dpi=120)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["weight", "corrupted"])
        writer.writerows(zip(weights.tolist(), corrupted.tolist(), strict=True))
    return [picture, table]


def draw_comparison(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the weights that each method gives to clean and to corrupted examples, and accuracies.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`, with the test accuracy in
            a column.
        path: File to write.
    """
    import numpy
    from matplotlib.figure import Figure

    learned = {
        str(label): [run.info["weights"] for run in part["run"]]
        for label, part in frame.groupby("row", sort=False)
        if all("weights" in run.info for run in part["run"])
    }
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    left, right = parts
    columns = min(3, max(1, len(learned)))
    rows = -(-len(learned) // columns) or 1
    axes = list(left.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axis, (label, shares) in zip(axes, learned.items(), strict=False):
        mean = {kind: numpy.mean([one[kind] for one in shares], axis=0).tolist() for kind in _KINDS}
        _draw_histograms(axis, mean, label)
    for axis in axes[len(learned) :]:
        axis.set_axis_off()
    draw_rows(right.subplots(), frame, "test accuracy [%]", interval=True)
    figure.savefig(path, dpi=120)


def _by_kind(weights: Tensor, corrupted: Tensor) -> dict[str, Tensor]:
    return {"clean": weights[~corrupted], "corrupted": weights[corrupted]}


def _draw_histograms(axis: Axes, shares: dict[str, list[float]], title: str) -> None:
    places = [(place + 0.5) / BINS for place in range(BINS)]
    for name, color in _KINDS.items():
        values = [100 * share for share in shares[name]]
        axis.bar(places, values, 1 / BINS, alpha=0.6, color=color, label=f"{name} labels")
    axis.set(xlabel="weight σ(λ)", ylabel="share of them [%]", title=literal(title))
    axis.legend(loc="center", fontsize="small")
