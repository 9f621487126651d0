"""Scores of classifiers of tokens and of texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError, optional_import
from metatoolkit.evaluation.mode import evaluation_mode
from metatoolkit.tasks.languages import TokenDataset, evaluation_token_batches

Predict = Callable[[dict[str, Tensor]], Tensor]


def span_f1(
    predict: Predict,
    dataset: TokenDataset,
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
) -> float:
    """Return the micro-averaged F1 of predicted spans.

    A span counts if its type and both its ends are right. Spans are found by seqeval in its default
    mode, that of the CoNLL evaluation script: an ``I-X`` that does not continue a span of type X
    begins one. The rows of a sentence that was cut are put together again before spans are found.

    Args:
        predict: Maps a batch (as :class:`metatoolkit.tasks.TokenBatches` yields them) to logits of
            shape (batch, tokens, classes), or to class indices of shape (batch, tokens). A module
            is evaluated in eval mode.
        dataset: Encoded sentences.
        batch_size: Largest number of rows per batch.
        device: Device to yield batches on; ``None`` takes that of a module, else of the data set.

    Returns:
        The F1, from 0 to 1; 0 if no span is predicted.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
        DataError: The data set holds documents, or no span.
        MissingDependencyError: seqeval is not installed.
        ShapeError: The predictions have another shape.
    """
    with optional_import("span_f1"):
        from seqeval.metrics import f1_score

    true, predicted = tag_sequences(predict, dataset, batch_size, device=device)
    if all(tag == "O" for tags in true for tag in tags):
        raise DataError("the data set holds no span, so that its F1 is not defined.")
    return float(f1_score(true, predicted, average="micro", zero_division=0))


def tag_sequences(
    predict: Predict,
    dataset: TokenDataset,
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the true and the predicted tags of each sentence, one per word.

    Args:
        predict: As in :func:`span_f1`.
        dataset: As in :func:`span_f1`.
        batch_size: As in :func:`span_f1`.
        device: As in :func:`span_f1`.

    Returns:
        True and predicted tags, a list for each sentence.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
        DataError: The data set holds documents.
        ShapeError: The predictions have another shape.
    """
    if not dataset.is_tagging:
        raise DataError("the data set holds documents; encode sentences, or use label_accuracy.")
    true: list[list[str]] = []
    predicted: list[list[str]] = []
    last = None
    numbers = iter(dataset.example.tolist())
    for labels, indices in _predictions(predict, dataset, batch_size, device):
        for row_labels, row_indices in zip(labels, indices, strict=True):
            number = next(numbers)
            if number != last:
                true.append([])
                predicted.append([])
                last = number
            scored = row_labels >= 0
            names = dataset.label_names
            true[-1] += [names[label] for label in row_labels[scored].tolist()]
            predicted[-1] += [names[label] for label in row_indices[scored].tolist()]
    return true, predicted


def label_accuracy(
    predict: Predict,
    dataset: TokenDataset,
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
) -> float:
    """Return the fraction of labels that are predicted right: of documents, or of words.

    Args:
        predict: As in :func:`span_f1`; for documents, logits have shape (batch, classes) and class
            indices (batch,).
        dataset: Encoded documents or sentences.
        batch_size: As in :func:`span_f1`.
        device: As in :func:`span_f1`.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
        ShapeError: The predictions have another shape.
    """
    correct = total = 0
    for labels, indices in _predictions(predict, dataset, batch_size, device):
        scored = labels >= 0
        correct += int((labels == indices)[scored].sum())
        total += int(scored.sum())
    return correct / total


def _predictions(
    predict: Predict, dataset: TokenDataset, batch_size: int, device: torch.device | str | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield labels and predicted class indices of each batch, on the CPU."""
    module = predict if isinstance(predict, nn.Module) else None
    if device is None and module is not None:
        device = next((p.device for p in module.parameters()), None)
    mode = contextlib.nullcontext() if module is None else evaluation_mode(module)
    with mode, torch.no_grad():
        for batch in evaluation_token_batches(dataset, batch_size, device):
            labels = batch["labels"]
            output = predict(batch)
            indices = output.argmax(dim=-1) if output.is_floating_point() else output
            classes = output.shape[-1] if output.is_floating_point() else None
            if indices.shape != labels.shape or classes not in (None, len(dataset.label_names)):
                raise ShapeError(
                    f"the predictions have shape {tuple(output.shape)} for labels of shape "
                    f"{tuple(labels.shape)} and {len(dataset.label_names)} classes; logits with a "
                    "last dimension of classes, or class indices shaped like labels, are needed."
                )
            yield labels.cpu(), indices.cpu()
