"""Checks of class labels, made once where labels enter."""

from __future__ import annotations

import torch
from torch import Tensor

from metatoolkit.errors import DataError, LabelError, ShapeError
from metatoolkit.stateless.traced_flags import holds


def check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Check that labels can index classes; reads their values, so a GPU has to be waited for.

    Args:
        name: What the labels are, in the plural, for the message.
        labels: Labels; accepted are int64 tensors of shape (examples,).
        classes: Number of classes.

    Raises:
        ShapeError: The labels are not one-dimensional.
        DataError: The labels are no int64 tensor.
        LabelError: A label is negative, or ``classes`` or more.
    """
    check_label_type(name, labels)
    check_label_range(name, labels, classes)


def check_label_type(name: str, labels: Tensor) -> None:
    """Check type and shape of labels, without a look at their values.

    Args:
        name: What the labels are, in the plural, for the message.
        labels: Labels; accepted are int64 tensors of shape (examples,).

    Raises:
        ShapeError: The labels are not one-dimensional.
        DataError: The labels are no int64 tensor.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        given = str(labels.dtype) if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise DataError(
            f"{name} are {given.removeprefix('torch.')}; an int64 tensor is needed: use "
            "torch.as_tensor(labels).long()."
        )
    if labels.dim() != 1:
        raise ShapeError(f"{name} have shape {tuple(labels.shape)}; (examples,) is needed.")


def check_label_range(name: str, labels: Tensor, classes: int) -> None:
    """Check the values of labels; reads them, so a GPU has to be waited for.

    Args:
        name: What the labels are, in the plural, for the message.
        labels: Labels of shape (examples,), int64.
        classes: Number of classes.

    Raises:
        LabelError: A label is negative, or ``classes`` or more; the message names the first.
    """
    outside = (labels < 0) | (labels >= classes)
    if holds(outside.any()):
        index = int(outside.nonzero()[0])
        raise LabelError(
            f"{name} hold {int(labels[index])} at index {index}; with {classes} classes, labels "
            f"from 0 to {classes - 1} are accepted."
        )
