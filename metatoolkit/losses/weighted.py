"""Cross-entropies in which examples have weights that are learned."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.losses.classification import sample_losses
from metatoolkit.metaparameters.weight_net import normalize_weights
from metatoolkit.state import describe


def weighted_cross_entropy(
    model: nn.Module, meta: nn.Module, batch: Any, *, normalize: bool = True
) -> Tensor:
    """Return the cross-entropy of a batch, each example weighted by ``meta``.

    The weights are ``meta(losses)`` with the detached losses of the examples, as in Shu et al.
    2019 (arXiv:1902.07379), so that the model is not drawn to change its weights.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        meta: Maps losses of shape (batch,) to weights of the same shape, for instance a
            :class:`metatoolkit.metaparameters.WeightNet`.
        batch: As in :func:`cross_entropy`.
        normalize: Whether weights are divided by their sum; otherwise by the number of examples.

    Returns:
        A scalar tensor.

    Raises:
        DataError: As in :func:`cross_entropy`.
        ShapeError: As in :func:`cross_entropy`, or the weights have another shape.
        LabelError: As in :func:`cross_entropy`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metatoolkit.metaparameters import WeightNet
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> weighted_cross_entropy(nn.Identity(), WeightNet(), batch).detach()  # weights sum to 1
        tensor(1.3863)
    """
    losses = sample_losses(model, batch)
    weights = _checked_weights(meta(losses.detach()), losses)
    if normalize:
        return (normalize_weights(weights) * losses).sum()
    return (weights * losses).mean()


def reweighted_cross_entropy(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean over a batch of w_i L_i, each example with a weight of its own; a scalar.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        meta: Maps places in the training set to weights of the same shape, such as
            :class:`metatoolkit.metaparameters.ExampleWeights`.
        batch: Inputs, labels and the places of the examples, int64 of shape (batch,).

    Raises:
        DataError: The batch is no such triple, or a type is not accepted.
        ShapeError: As in :func:`weighted_cross_entropy`.
        LabelError: As in :func:`cross_entropy`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metatoolkit.metaparameters import ExampleWeights
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([7, 8]))
        >>> reweighted_cross_entropy(nn.Identity(), ExampleWeights(9), batch).detach()  # log 4 / 2
        tensor(0.6931)
    """
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        raise DataError(f"the batch is {describe(batch)}; (inputs, labels, places) is needed.")
    losses = sample_losses(model, batch[:2])
    return (_checked_weights(meta(batch[2]), losses) * losses).mean()


def _checked_weights(weights: Any, losses: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        given = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ShapeError(
            f"meta returned weights of shape {given} for {len(losses)} losses; shape "
            f"{tuple(losses.shape)} is needed."
        )
    return weights
