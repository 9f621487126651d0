"""Warm-up of the encoder, and the auxiliary classification loss beside that of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import override

from metatoolkit.errors import CheckpointError, brief
from metatoolkit.evaluation import evaluation_mode
from metatoolkit.losses import episode_cross_entropy
from metatoolkit.tasks import Episode, EpisodeBatches
from metatoolkit.tasks.labeled_batches import LabeledBatches
from metatoolkit.tasks.resumable import BatchesSideBySide
from metatoolkit.training.checkpoints import load_tensors


class AuxiliaryBatches(BatchesSideBySide[tuple[Episode, tuple[Tensor, Tensor], float]]):
    """Episodes, each with a batch for classification and the weight of its loss.

    The weight falls as ``weight`` · ``decay`` ^ ⌊``decays`` · t / ``steps``⌋ at step t, as in the
    code of Tseng et al. 2020.

    Args:
        episodes: Episodes.
        labeled: Batches for classification.
        weight: Weight at the first step.
        decay: Factor of the weight.
        decays: Number of decays over the training.
        steps: Number of steps of the training.
    """

    def __init__(
        self,
        episodes: EpisodeBatches,
        labeled: LabeledBatches,
        weight: float,
        decay: float,
        decays: int,
        steps: int,
    ) -> None:
        super().__init__({"episodes": episodes, "labeled": labeled})
        self.episodes, self.labeled = episodes, labeled
        self.weight, self.decay, self.decays, self.steps = weight, decay, decays, steps

    @override
    def __next__(self) -> tuple[Episode, tuple[Tensor, Tensor], float]:
        """Return an episode, a pair of images and labels, and the weight."""
        power = self.decays * self.labeled.next_batch // self.steps
        return next(self.episodes), next(self.labeled), self.weight * self.decay**power


def add_auxiliary_head(model: nn.Module, classes: int) -> None:
    """Give a network the head of three linear layers that the auxiliary loss trains.

    Args:
        model: A :class:`metatoolkit.networks.FewShotNetwork`; changed in place.
        classes: Number of classes.
    """
    encoder: Any = model.encoder
    width = encoder.out_channels
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    model.auxiliary = nn.Sequential(*layers, nn.Linear(width, classes))


def episode_and_auxiliary_loss(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the loss of an episode plus the weighted one of classification.

    For classification the encoder is in eval mode: without transforms, with running statistics.

    Args:
        model: Network with an auxiliary head.
        meta: The transforms.
        batch: What :class:`AuxiliaryBatches` yields.
    """
    episode, (images, labels), weight = batch
    loss = episode_cross_entropy(model, meta, episode)
    encoder: Any = model.encoder
    with evaluation_mode(encoder):
        features = encoder(images).mean(dim=(2, 3))
    head: Any = model.auxiliary
    return loss + weight * F.cross_entropy(head(features), labels)


def warm_up(
    encoder: nn.Module, batches: LabeledBatches, steps: int, lr: float, progress: bool
) -> None:
    """Train an encoder with a linear classifier on top, which is then dropped.

    Args:
        encoder: Backbone; changed in place.
        batches: Labeled images.
        steps: Number of steps of Adam.
        lr: Learning rate.
        progress: Whether to show a progress bar.
    """
    width: Any = encoder.out_channels
    device = next(encoder.parameters()).device
    classifier = nn.Linear(width, batches.classes).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *classifier.parameters()], lr=lr)
    for _ in tqdm(range(steps), desc="warm-up", disable=not progress, leave=False):
        images, labels = next(batches)
        logits = classifier(encoder(images.to(device)).mean(dim=(2, 3)))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels.to(device)).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Load an encoder's parameters and buffers from a file that ``torch.save`` wrote.

    Args:
        encoder: Backbone; changed in place.
        path: File with the backbone's ``state_dict()``.

    Raises:
        CheckpointError: The file cannot be read, or belongs to another backbone.
    """
    try:
        encoder.load_state_dict(load_tensors(path))
    except (CheckpointError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"warm_up.checkpoint: {path} holds no parameters of this backbone ({brief(error)}); "
            "give a file of its state_dict(), or warm_up.steps."
        ) from error
