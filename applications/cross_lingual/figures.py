"""Figures of the cross-lingual application."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.evaluation import evaluation_mode
from metatoolkit.experiments.figures import draw_rows
from metatoolkit.tasks.languages import evaluation_token_batches

if TYPE_CHECKING:
    import pandas

_SENTENCES = 200


def transform_changes(trainer: mt.MetaTrainer, task: Any) -> dict[str, Tensor]:
    """Return how far the transformation moves hidden states of the source, by label.

    Args:
        trainer: Trainer whose encoder and transformation are evaluated.
        task: The encoded languages.

    Returns:
        For each label that occurs the change of each token's hidden state relative to its norm.
    """
    model: Any = trainer.problem.model
    meta: Any = trainer.problem.meta
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {}
    taken = 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in evaluation_token_batches(task.source, device=device):
            hidden = model.encode(batch)
            with meta.active():
                after = model.encode(batch)
            change = ((after - hidden).norm(dim=-1) / hidden.norm(dim=-1)).cpu()
            labels = batch["labels"].cpu()
            if labels.dim() == 1:
                labels = labels.unsqueeze(1).expand_as(change)
                labels = labels.masked_fill(batch["attention_mask"].cpu() == 0, -100)
            for index in labels.unique().tolist():
                if index >= 0:
                    found.setdefault(task.labels[index], []).append(change[labels == index])
            taken += len(labels)
            if taken >= _SENTENCES:
                break
    return {label: torch.cat(found[label]) for label in task.labels if label in found}


def write(trainer: mt.MetaTrainer, task: Any, folder: Path) -> list[Path]:
    """Write what the transformation does to the source, by label, as a figure and a table.

    Args:
        trainer: The trained trainer.
        task: The encoded languages.
        folder: Where to write.

    Returns:
        The files: ``transform.png`` and ``transform.csv`` (label, tokens, mean and standard
        deviation of the relative change). None where nothing was learned.
    """
    if trainer.estimator is None:
        return []
    from matplotlib.figure import Figure

    changes = transform_changes(trainer, task)
    figure = Figure(figsize=(6, 0.4 * len(changes) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.boxplot([c.numpy() for c in changes.values()], orientation="horizontal", showfliers=False)
    axis.set_yticks(range(1, len(changes) + 1), list(changes))
    axis.set(
        xlabel="relative change of the hidden state",
        ylabel="label",
        title=f"Source {task.languages[0]}, target {task.languages[1]}",
    )
    picture, table = folder / "transform.png", folder / "transform.csv"
    figure.savefig(picture, dpi=120)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "tokens", "mean", "std"])
        for label, values in changes.items():
            writer.writerow(
                [label, len(values), float(values.mean()), float(values.std(correction=0))]
            )
    return [picture, table]


def draw_comparison(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the score of each method beside the memory of its meta step.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    score, memory = figure.subplots(1, 2)
    draw_rows(score, frame, "test F1 [%]")
    draw_rows(memory, frame.dropna(subset=["meta step [MiB]"]), "meta step [MiB]")
    figure.savefig(path, dpi=120)
