"""Cross-entropies of whole batches and episodes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.networks.metric_heads import query_labels
from metatoolkit.tasks.labels import check_label_range, check_label_type


def cross_entropy(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch; the meta-parameters have no part in it.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        meta: Not used.
        batch: A pair of inputs, of shape (batch, ...), and labels, int64 of shape (batch,).

    Returns:
        A scalar tensor.

    Raises:
        DataError: The batch is no such pair, or a type is not accepted.
        ShapeError: Numbers of examples differ, or the logits do not have two dimensions.
        LabelError: A label has no logit (checked on the CPU only).

    Example:
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> cross_entropy(nn.Identity(), nn.Identity(), batch)  # log 4
        tensor(1.3863)
    """
    return sample_losses(model, batch).mean()


def episode_cross_entropy(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of an episode's queries.

    Args:
        model: Called as ``model(support, query)``; returns logits of shape (ways · queries, ways),
            the queries class by class, as :class:`metatoolkit.networks.FewShotNetwork` does.
        meta: Not used; its transforms act from inside the model.
        batch: A :class:`metatoolkit.tasks.Episode`, or any pair of support, of shape
            (ways, shots, ...), and query, of shape (ways, queries, ...).

    Returns:
        A scalar tensor.

    Raises:
        DataError: The batch is no such pair.
        ShapeError: The logits have another shape.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"the batch is a {type(batch).__name__}; an episode (support, query) is needed."
        )
    support, query = batch
    ways, queries = query.shape[:2]
    logits = model(support, query)
    if logits.shape != (ways * queries, ways):
        raise ShapeError(
            f"the model returned {tuple(logits.shape)} for {ways} ways with {queries} queries; "
            f"logits of shape {(ways * queries, ways)} are needed."
        )
    return F.cross_entropy(logits, query_labels(ways, queries, logits.device))


def transformed_cross_entropy(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch whose inputs go through ``meta`` first.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        meta: Maps inputs to inputs, for instance a
            :class:`metatoolkit.metaparameters.Rotation`.
        batch: As in :func:`cross_entropy`.

    Returns:
        A scalar tensor.

    Raises:
        DataError: As in :func:`cross_entropy`.
        ShapeError: As in :func:`cross_entropy`.
        LabelError: As in :func:`cross_entropy`.
    """
    inputs, labels = _check_batch(batch)
    return sample_losses(model, (meta(inputs), labels)).mean()


def sample_losses(model: nn.Module, batch: Any) -> Tensor:
    """Return the cross-entropy of each example.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        batch: As in :func:`cross_entropy`.

    Returns:
        Losses of shape (batch,).

    Raises:
        DataError: As in :func:`cross_entropy`.
        ShapeError: As in :func:`cross_entropy`.
        LabelError: As in :func:`cross_entropy`.
    """
    return F.cross_entropy(*checked_logits(model, batch), reduction="none")


def checked_logits(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the logits and labels of a batch, which fit together.

    Args:
        model: Maps inputs to logits of shape (batch, classes).
        batch: As in :func:`cross_entropy`.

    Returns:
        Logits of shape (batch, classes), and labels of shape (batch,).

    Raises:
        DataError: As in :func:`cross_entropy`.
        ShapeError: As in :func:`cross_entropy`.
        LabelError: As in :func:`cross_entropy`.
    """
    inputs, labels = _check_batch(batch)
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(
            f"the model returned {given} for {len(labels)} labels; logits of shape (batch, "
            "classes) are needed."
        )
    if _values_are_at_hand(labels):
        check_label_range("labels of the batch", labels, logits.shape[1])
    return logits, labels


def _check_batch(batch: Any) -> tuple[Any, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise DataError(
            f"the batch is a {type(batch).__name__}{length}; a pair (inputs, labels) is needed."
        )
    inputs, labels = batch
    check_label_type("labels of the batch", labels)
    if len(labels) == 0:
        raise DataError("the batch is empty; at least one example is needed.")
    if isinstance(inputs, Tensor):
        if inputs.dim() == 0 or len(inputs) != len(labels):
            raise ShapeError(
                f"inputs have shape {tuple(inputs.shape)}, labels {tuple(labels.shape)}; the first "
                "dimensions must be equal."
            )
        if inputs.dtype == torch.uint8:
            raise DataError(
                "inputs are uint8, that is images before normalization; pass "
                "transform=dataset.transform() to the batches."
            )
    return inputs, labels


def _values_are_at_hand(labels: Tensor) -> bool:
    """Tell whether reading values breaks no graph and waits for no device."""
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or type(labels) is not Tensor:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(labels)
