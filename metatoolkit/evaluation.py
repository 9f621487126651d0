"""Evaluation of trained models."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError, ShapeError
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.tasks.batches import Transform, evaluation_batches
from metatoolkit.tasks.domains import Domain, ImageSet
from metatoolkit.tasks.episodes import Episode, EpisodeBatches
from metatoolkit.tasks.image_transforms import ImageTransform, transformed
from metatoolkit.tasks.languages import TokenDataset, evaluation_token_batches

Predict = Callable[[dict[str, Tensor]], Tensor]


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
        ShapeError: The predictions have another shape.
    """
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


def domain_accuracy(
    network: nn.Module,
    domain: Domain,
    split: str,
    ways: int,
    shots: int,
    queries: int,
    count: int,
    *,
    seed: int = 0,
    transform: Transform | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> FewShotAccuracy:
    """Return the few-shot accuracy of a network on a domain, each image encoded only once.

    Cost: one forward pass of the encoder over the split, and the head for each episode. Memory: the
    features of the split.

    Args:
        network: A :class:`metatoolkit.networks.FewShotNetwork`, or any module whose ``encode`` maps
            images to features of shape (batch, channels, height, width) and whose ``head`` maps
            those of support and query to logits. It is evaluated in eval mode on its own device.
        domain: Domain to test on.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        ways: Classes per episode.
        shots: Support images per class.
        queries: Query images per class.
        count: Number of episodes.
        seed: Seed of the episodes.
        transform: Transform of the images, which must not be random; ``None`` scales uint8.
        batch_size: Images per batch of the encoder.
        progress: Whether to show a progress bar.

    Returns:
        Mean, interval and the accuracy in each episode.

    Raises:
        ConfigurationError: A number is out of range.
        UnknownNameError: There is no such split.
        DataError: The split has fewer classes than ``ways``, or a class too few images.
    """
    images = domain.split(split)
    generator = torch.Generator().manual_seed(seed)
    chosen: Transform = ImageTransform() if transform is None else transform
    model: Any = network
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def encode(places: Tensor) -> Tensor:
        inputs = transformed(images.load(places.tolist()), chosen, generator, device)
        features: Tensor = model.encode(inputs)
        return features

    with evaluation_mode(network), torch.no_grad():
        parts = torch.arange(len(images.labels)).split(batch_size)
        features = torch.cat([encode(places) for places in parts])
        encoded: Any = {split: ImageSet(features, images.labels, images.class_names)}
        episodes = EpisodeBatches(
            [dataclasses.replace(domain, **encoded)], split, ways, shots, queries, seed
        )
        return few_shot_accuracy(
            lambda episode: model.head(episode.support, episode.query),
            episodes,
            count,
            seed=seed,
            progress=progress,
            description=f"{domain.name} {split}",
        )


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its modules back into its own mode afterwards.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class FewShotAccuracy(NamedTuple):
    """Accuracy over episodes.

    Attributes:
        mean: Mean accuracy, from 0 to 1.
        interval: Half width of its 95 % confidence interval, 1.96 standard deviations of the
            episodes' accuracies over the square root of their number.
        accuracies: Accuracy in each episode, float64 of shape (episodes,).
    """

    mean: float
    interval: float
    accuracies: Tensor


def few_shot_accuracy(
    score: Callable[[Episode], Tensor],
    episodes: Iterable[Episode],
    count: int,
    *,
    seed: int = 0,
    progress: bool = True,
    description: str = "evaluation",
) -> FewShotAccuracy:
    """Return the accuracy over few-shot episodes with its 95 % confidence interval.

    Args:
        score: Maps an episode to logits of shape (ways * queries, ways), whose rows follow
            ``episode.query.flatten(0, 1)``. It is called without gradients, and whatever it draws
            at random comes from ``seed``, never from the global random state.
        episodes: Episodes, at least ``count``.
        count: Number of episodes; 1,000 or 600 are usual.
        seed: Seed of what ``score`` draws.
        progress: Whether to show a progress bar.
        description: Words in front of the bar.

    Returns:
        Mean, interval and the accuracy in each episode.

    Raises:
        ConfigurationError: ``count`` is less than 2, with which there is no interval.
        DataError: There are fewer episodes.
        ShapeError: The logits have another shape.
        NonFiniteError: A logit is NaN.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ConfigurationError(
            f"count is {count!r}; an integer from 2 on is needed, an interval takes two episodes."
        )
    accuracies: list[float] = []
    taken = itertools.islice(episodes, count)
    bar = tqdm(
        taken, total=count, desc=description, disable=not progress, dynamic_ncols=True, leave=False
    )
    for number, episode in enumerate(bar):
        ways, queries = episode.query.shape[:2]
        with torch.no_grad(), seeded(fold_in(seed, number), [episode.query.device]):
            logits = score(episode)
        if logits.shape != (ways * queries, ways):
            raise ShapeError(
                f"logits have shape {tuple(logits.shape)}; {ways} ways of {queries} queries need "
                f"({ways * queries}, {ways})."
            )
        if logits.isnan().any():
            raise NonFiniteError(f"logits of episode {number} hold NaN; the model has diverged.")
        labels = torch.arange(ways, device=logits.device).repeat_interleave(queries)
        accuracies.append(float((logits.argmax(dim=1) == labels).double().mean()))
    if len(accuracies) < count:
        raise DataError(f"there are {len(accuracies)} episodes, but count is {count}; lower it.")
    values = torch.tensor(accuracies, dtype=torch.float64)
    interval = 1.96 * float(values.std()) / math.sqrt(count)
    return FewShotAccuracy(float(values.mean()), interval, values)
