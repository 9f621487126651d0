"""Figures of the label noise application."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.evaluation import evaluation_mode
from metatoolkit.experiments.figures import draw_rows
from metatoolkit.losses import sample_losses
from metatoolkit.tasks import NoisyClassification, evaluation_batches

if TYPE_CHECKING:
    import pandas


def example_losses(trainer: mt.MetaTrainer, task: NoisyClassification) -> Tensor:
    """Return the loss of each training example under its given label, shape (examples,).

    Args:
        trainer: Trainer whose model is evaluated, in eval mode.
        task: The noisy data.
    """
    model = trainer.problem.model
    device = next(model.parameters()).device
    batches = evaluation_batches(*task.train, transform=task.dataset.transform(), device=device)
    with torch.no_grad(), evaluation_mode(model):
        return torch.cat([sample_losses(model, batch) for batch in batches]).cpu()


def learned_weights(trainer: mt.MetaTrainer, losses: Tensor) -> Tensor:
    """Return the weight that belongs to each loss, before normalization, of the same shape.

    Args:
        trainer: Trainer whose weight network is evaluated.
        losses: Losses of shape (examples,), for instance those of :func:`example_losses`.
    """
    meta = trainer.problem.meta
    with torch.no_grad():
        weights: Tensor = meta(losses.to(next(meta.parameters()).device))
    return weights.cpu()


def write(
    trainer: mt.MetaTrainer, losses: Tensor, corrupted: Tensor, folder: Path, method: str
) -> list[Path]:
    """Write the learned weight against the loss as a figure and a table.

    Args:
        trainer: The trained trainer.
        losses: Loss of each training example, shape (examples,).
        corrupted: Which of them carry a wrong label, bool, of the same shape.
        folder: Where to write.
        method: Name for the title.

    Returns:
        The files: ``weights.png`` and ``weights.csv`` (loss, weight, corrupted) of the training
        examples.
    """
    from matplotlib.figure import Figure

    weights = learned_weights(trainer, losses)
    figure = Figure(figsize=(10, 4), layout="constrained")
    scatter, histogram = figure.subplots(1, 2)
    grid = torch.linspace(0, float(losses.max()), 200)
    scatter.plot(
        grid, learned_weights(trainer, grid), color="black", linewidth=1, label="learned weight"
    )
    bins = torch.linspace(0, float(losses.max()) + 1e-6, 40).tolist()
    for name, mask, color in (
        ("clean label", ~corrupted, "tab:blue"),
        ("corrupted label", corrupted, "tab:red"),
    ):
        # Matplotlib reads a tensor one entry at a time.
        points = losses[mask].numpy(), weights[mask].numpy()
        scatter.scatter(*points, s=6, alpha=0.4, color=color, label=name)
        histogram.hist(losses[mask].tolist(), bins=bins, alpha=0.6, color=color, label=name)
    scatter.set(xlabel="loss of the example", ylabel="weight V(loss)", title=method)
    histogram.set(xlabel="loss of the example", ylabel="training examples", title="losses")
    # Matplotlib would look for the best place among thousands of points.
    scatter.legend(loc="upper right")
    histogram.legend(loc="upper right")
    picture, table = folder / "weights.png", folder / "weights.csv"
    figure.savefig(picture, dpi=120)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["loss", "weight", "corrupted"])
        writer.writerows(zip(losses.tolist(), weights.tolist(), corrupted.tolist(), strict=True))
    return [picture, table]


def draw_comparison(frame: pandas.DataFrame, path: Path) -> None:
    """Draw accuracies of the methods, and the weights that they give to examples.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, weights = figure.subplots(1, 2)
    draw_rows(accuracy, frame, "test accuracy [%]")
    means = frame.groupby("row", sort=False)[["weight, clean", "weight, corrupted"]].mean()
    places = range(len(means))
    for shift, (header, values) in zip((-0.2, 0.2), means.items(), strict=True):
        weights.barh([p + shift for p in places], values, 0.4, label=header)
    weights.set_yticks(list(places), [str(label) for label in means.index])
    weights.invert_yaxis()
    weights.set(xlabel="mean weight of training examples")
    weights.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


def draw_scaling(frame: pandas.DataFrame, path: Path) -> None:
    """Draw memory and time of a meta step against the sizes that the runs differ in.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    sweeps = {
        "width of the network": ("width", lambda c: c["network"]["width"]),
        "hidden units of the weight network": ("weight net", lambda c: c["weight_net"]["hidden"]),
        "candidates K": ("candidates", lambda c: c["evograd"]["candidates"]),
    }
    measures = {
        "peak memory of a meta step [MiB]": "meta step [MiB]",
        "processor time of a meta step [ms]": "meta step [ms]",
    }
    methods = frame["row"].str.split(",").str[0]
    colors = {method: f"C{index}" for index, method in enumerate(methods.unique())}
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(len(measures), len(sweeps), squeeze=False)
    for column, (label, (kind, size)) in enumerate(sweeps.items()):
        for row, (name, header) in enumerate(measures.items()):
            axis = axes[row][column]
            chosen = frame[frame["row"].str.contains(f", {kind} ") & frame[header].notna()]
            for method, part in chosen.groupby(methods, sort=False):
                sizes = part["run"].map(lambda run, size=size: size(run.config))
                means = part[header].groupby(sizes).mean()
                axis.plot(means.index, means, "o-", color=colors[method], label=method)
            axis.set(xlabel=label, ylabel=name)
            axis.set_xscale("log" if kind == "weight net" else "linear")
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
            axis.grid(alpha=0.3)
            axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
