"""The squared error of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.state import describe


def squared_error(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared error of a batch; the meta-parameters have no part in it.

    Args:
        model: Maps inputs to outputs of the shape of the targets.
        meta: Not used.
        batch: A pair of inputs and targets, both of shape (batch, ...).

    Returns:
        A scalar tensor.

    Raises:
        DataError: The batch is no such pair, or it is empty.
        ShapeError: Outputs and targets differ in shape, which would pair each with others.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> batch = (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
        >>> squared_error(nn.Identity(), nn.Identity(), batch)
        tensor(2.)
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not isinstance(batch[1], Tensor) or batch[1].numel() == 0:
        raise DataError(
            f"the batch is {describe(batch)}; a pair (inputs, targets) is needed, of at least one "
            "example."
        )
    return errors_of(model, *batch).mean()


def errors_of(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    """Return the squared errors of outputs that have the shape of their targets.

    Args:
        model: Maps inputs to outputs of the shape of the targets.
        inputs: What the model takes.
        targets: Targets of shape (batch, ...).

    Returns:
        A tensor of the shape of the targets.

    Raises:
        ShapeError: Outputs and targets differ in shape, which would pair each with others.
    """
    outputs = model(inputs)
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(
            f"the model returned {given} for targets of shape {tuple(targets.shape)}; both must "
            "have the same."
        )
    return (outputs - targets).square()
