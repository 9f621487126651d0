"""Losses of classification and regression, as a bilevel problem takes them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatoolkit.errors import DataError, ShapeError, UnsupportedError
from metatoolkit.metaparameters.weight_net import normalize_weights
from metatoolkit.networks.metric_heads import query_labels
from metatoolkit.state import describe
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
    inputs, targets = batch
    outputs = model(inputs)
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(
            f"the model returned {given} for targets of shape {tuple(targets.shape)}; both must "
            "have the same."
        )
    return (outputs - targets).square().mean()


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
        >>> from metatoolkit.metaparameters import ExampleWeights
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([7, 8]))
        >>> reweighted_cross_entropy(nn.Identity(), ExampleWeights(9), batch).detach()  # log 4 / 2
        tensor(0.6931)
    """
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        raise DataError(f"the batch is {describe(batch)}; (inputs, labels, places) is needed.")
    losses = sample_losses(model, batch[:2])
    return (_checked_weights(meta(batch[2]), losses) * losses).mean()


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
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise DataError(
            f"the batch is a {type(batch).__name__}{length}; inputs, labels and a mask are needed."
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
    inputs, labels, mask = batch
    check_label_type("labels of the batch", labels)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != labels.shape:
        given = (
            f"{tuple(mask.shape)} of {mask.dtype}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        raise ShapeError(
            f"the mask is {given}; a boolean one of shape {tuple(labels.shape)} is needed."
        )
    return (inputs, labels), mask


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


def _checked_weights(weights: Any, losses: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        given = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ShapeError(
            f"meta returned weights of shape {given} for {len(losses)} losses; shape "
            f"{tuple(losses.shape)} is needed."
        )
    return weights


def _values_are_at_hand(labels: Tensor) -> bool:
    """Tell whether reading values breaks no graph and waits for no device."""
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or type(labels) is not Tensor:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(labels)
