"""Accuracy of classifiers of images, or of any inputs in a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.evaluation.mode import evaluation_mode
from metatoolkit.tasks.batches import Transform, evaluation_batches


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 512,
    *,
    transform: Transform | None = None,
) -> float:
    """Return the fraction of examples whose largest logit is that of their label.

    The model is evaluated in eval mode, without gradients and on its own device; afterwards each
    of its modules is in the mode that it was in.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        images: Inputs of shape (examples, ...).
        labels: Labels of shape (examples,), int64.
        batch_size: Largest number of examples per batch.
        transform: Applied to each batch of inputs, for instance ``dataset.transform()``.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
        DataError: There are no examples.
        ShapeError: Lengths differ, or the model does not return one row of logits per example.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 2]))
        0.75
    """
    device = next((p.device for p in model.parameters()), images.device)
    batches = evaluation_batches(
        images, labels, batch_size=batch_size, transform=transform, device=device
    )
    if len(labels) == 0:
        raise DataError("there are no examples to evaluate.")
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with evaluation_mode(model), torch.no_grad():
        for inputs, targets in batches:
            logits = model(inputs)
            if logits.dim() != 2 or targets.dim() != 1:
                raise ShapeError(
                    f"logits have shape {tuple(logits.shape)}, labels {tuple(targets.shape)}; "
                    "(batch, classes) and (batch,) are needed."
                )
            correct += (logits.argmax(dim=1) == targets).sum()
    return int(correct) / len(labels)
