"""Training on noisy labels without meta-learning: no weights, equal weights, random weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metatoolkit.losses import cross_entropy, weighted_cross_entropy


def plain(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy: ordinary training on the noisy labels.

    Args:
        model: Classifier.
        meta: Not used.
        batch: Inputs, and labels of shape (B,).
    """
    return cross_entropy(model, meta, batch)


def uniform_weights(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy for batches from the training and the meta set together.

    Equal weights make the weighted loss the plain one; what differs is the data. This baseline
    sees each clean label that the meta-learners see.

    Args:
        model: Classifier.
        meta: Not used.
        batch: Inputs, and labels of shape (B,).
    """
    return cross_entropy(model, meta, batch)


def frozen_weights(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the loss weighted by a weight network that stays as it was drawn.

    It tells what is gained by learning the weights from what any weighting by loss does.

    Args:
        model: Classifier.
        meta: Weight network, not trained.
        batch: Inputs, and labels of shape (B,).
    """
    return weighted_cross_entropy(model, meta, batch)
