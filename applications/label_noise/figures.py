"""Figures of the label noise application."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.evaluation import evaluation_mode
from metatoolkit.losses import sample_losses
from metatoolkit.tasks import NoisyClassification, evaluation_batches


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


def learned_weights(trainer: mt.MetaTrainer, task: NoisyClassification) -> Tensor:
    """Return the weight of each training example, before normalization, shape (examples,).

    Args:
        trainer: Trainer whose model and weight network are evaluated.
        task: The noisy data.
    """
    losses = example_losses(trainer, task)
    meta = trainer.problem.meta
    with torch.no_grad():
        weights: Tensor = meta(losses.to(next(meta.parameters()).device))
    return weights.cpu()


def write(
    trainer: mt.MetaTrainer, task: NoisyClassification, folder: Path, method: str
) -> list[Path]:
    """Write the learned weight against the loss as a figure and a table, and the curves.

    Args:
        trainer: The trained trainer.
        task: The noisy data.
        folder: Where to write.
        method: Name for the title.

    Returns:
        The files: ``weights.png`` and ``weights.csv`` (loss, weight, corrupted) of the training
        examples, and ``curves.png``, each metric over the steps.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses, weights = example_losses(trainer, task), learned_weights(trainer, task)
    corrupted = task.is_corrupted
    figure, (scatter, histogram) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    grid = torch.linspace(0, float(losses.max()), 200)
    with torch.no_grad():
        curve = trainer.problem.meta(grid.to(next(trainer.problem.meta.parameters()).device))
    scatter.plot(grid, curve.cpu(), color="black", linewidth=1, label="learned weight")
    bins = torch.linspace(0, float(losses.max()) + 1e-6, 40).tolist()
    for name, mask, color in (
        ("clean label", ~corrupted, "tab:blue"),
        ("corrupted label", corrupted, "tab:red"),
    ):
        scatter.scatter(losses[mask], weights[mask], s=6, alpha=0.4, color=color, label=name)
        histogram.hist(losses[mask].tolist(), bins=bins, alpha=0.6, color=color, label=name)
    scatter.set(xlabel="loss of the example", ylabel="weight V(loss)", title=method)
    histogram.set(xlabel="loss of the example", ylabel="training examples", title="losses")
    scatter.legend()
    histogram.legend()
    picture, table = folder / "weights.png", folder / "weights.csv"
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["loss", "weight", "corrupted"])
        writer.writerows(zip(losses.tolist(), weights.tolist(), corrupted.tolist(), strict=True))
    return [picture, table, _draw_curves(trainer, folder / "curves.png")]


def _draw_curves(trainer: mt.MetaTrainer, path: Path) -> Path:
    from matplotlib.figure import Figure

    curves: dict[str, tuple[list[int], list[float]]] = {}
    for name, value, step in trainer.history:
        steps, values = curves.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    panels = {
        "loss": [name for name in curves if name.endswith("loss")],
        "accuracy": [name for name in curves if name.endswith("accuracy")],
        "norm": [name for name in curves if name.endswith(("norm", "distance"))],
    }
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axis, (label, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            axis.plot(*curves[name], label=name.replace("_", " "), linewidth=1)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if names:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
