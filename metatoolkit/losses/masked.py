"""Losses of padded batches, over the examples that a mask keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatoolkit.errors import DataError, ShapeError, UnsupportedError
from metatoolkit.losses.classification import sample_losses
from metatoolkit.losses.regression import errors_of
from metatoolkit.state import describe
from metatoolkit.tasks.labels import check_label_type


def masked_cross_entropy(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of the real examples of a padded batch.

    Args:
        model: Maps inputs to logits of shape (batch, classes), each example by itself.
        meta: Not used.
        batch: Inputs, labels and a boolean mask of shape (batch,), which is true where an example
            is real, as :func:`metatoolkit.tasks.pad_tasks` makes them.

    Returns:
        A scalar tensor.

    Raises:
        DataError: The batch is no such triple, or a type is not accepted.
        ShapeError: Numbers of examples differ, or the logits do not have two dimensions.
        LabelError: A label has no logit (checked on the CPU only).
        UnsupportedError: A layer normalizes with the statistics of the batch, padding included.

    Example:
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 0]), torch.tensor([True, False]))
        >>> masked_cross_entropy(nn.Identity(), nn.Identity(), batch)  # log 4
        tensor(1.3863)
    """
    pair, mask = split_mask(model, batch)
    losses = sample_losses(model, pair)
    return torch.where(mask, losses, 0.0).sum() / mask.sum()


def masked_squared_error(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared error of the real examples of a padded batch.

    Args:
        model: Maps inputs to outputs of the shape of the targets, each example by itself.
        meta: Not used.
        batch: Inputs, targets of shape (batch, ...) and a boolean mask of shape (batch,), which is
            true where an example is real, as :func:`metatoolkit.tasks.pad_tasks` makes them.

    Returns:
        A scalar tensor.

    Raises:
        DataError: The batch is no such triple, or it is empty.
        ShapeError: Outputs and targets differ in shape, or the mask is not boolean or has another
            shape.
        UnsupportedError: A layer normalizes with the statistics of the batch, padding included.

    Example:
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [0.0]])
        >>> batch = (inputs, targets, torch.tensor([True, False]))
        >>> masked_squared_error(nn.Identity(), nn.Identity(), batch)
        tensor(9.)
    """
    inputs, targets, mask = _triple(model, batch, "targets")
    if not isinstance(targets, Tensor) or targets.numel() == 0:
        raise DataError(
            f"the targets are {describe(targets)}; a tensor of at least one example is needed."
        )
    errors = errors_of(model, inputs, targets).reshape(len(targets), -1).mean(-1)
    _check_mask(mask, errors.shape)
    return torch.where(mask, errors, 0.0).sum() / mask.sum()


def split_mask(model: nn.Module, batch: Any) -> tuple[tuple[Any, Any], Tensor]:
    """Return inputs and labels of a padded batch, and its mask, which suits both model and labels.

    Args:
        model: As in :func:`masked_cross_entropy`.
        batch: As in :func:`masked_cross_entropy`.

    Raises:
        DataError: The batch is no triple.
        ShapeError: The mask is not boolean, or has another shape than the labels.
        UnsupportedError: A layer normalizes with the statistics of the batch, padding included.
    """
    inputs, labels, mask = _triple(model, batch, "labels")
    check_label_type("labels of the batch", labels)
    _check_mask(mask, labels.shape)
    return (inputs, labels), mask


def _triple(model: nn.Module, batch: Any, what: str) -> tuple[Any, Any, Any]:
    """Return the parts of a padded batch, for a model in which no example acts on another."""
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise DataError(
            f"the batch is a {type(batch).__name__}{length}; inputs, {what} and a mask are needed."
        )
    for name, module in model.named_modules():
        of_batch = isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        )
        if of_batch:
            raise UnsupportedError(
                f"{name or 'the model'} is a {type(module).__name__}, whose statistics would be "
                "those of padding as well; leave the tasks unpadded, and those of equal shapes run "
                "side by side."
            )
    inputs, targets, mask = batch
    return inputs, targets, mask


def _check_mask(mask: Any, shape: torch.Size) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
        given = (
            f"{tuple(mask.shape)} of {mask.dtype}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        raise ShapeError(f"the mask is {given}; a boolean one of shape {tuple(shape)} is needed.")
