"""Accuracy over few-shot episodes, with its interval."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError, ShapeError
from metatoolkit.evaluation.mode import evaluation_mode
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.domains import Domain, ImageSet
from metatoolkit.tasks.episodes import Episode, EpisodeBatches
from metatoolkit.tasks.image_transforms import ImageTransform, transformed


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

    Example:
        >>> episode = Episode(support=torch.zeros(2, 1, 1), query=torch.zeros(2, 1, 1))
        >>> scored = few_shot_accuracy(lambda _: torch.eye(2), [episode] * 3, 3, progress=False)
        >>> scored.mean, scored.interval
        (1.0, 0.0)
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
    return FewShotAccuracy(*mean_with_interval(values), values)


def mean_with_interval(values: Tensor) -> tuple[float, float]:
    """Return a mean over tasks and the half width of its 95 % confidence interval.

    That is 1.96 standard deviations over the square root of their number, as few-shot results are
    reported.

    Args:
        values: A value for each task, of shape (tasks,), at least two.

    Raises:
        ShapeError: There are fewer, or not one for each.

    Example:
        >>> mean_with_interval(torch.tensor([0.5, 1.0, 0.5, 1.0]))
        (0.75, 0.2829016319029166)
    """
    if values.dim() != 1 or len(values) < 2:
        raise ShapeError(
            f"values have shape {tuple(values.shape)}; (tasks,) with two tasks or more is needed, "
            "since one has no interval."
        )
    values = values.double()
    return float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))


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
