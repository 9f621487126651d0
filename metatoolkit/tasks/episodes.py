"""Few-shot episodes from domains, drawn through learn2learn's tasksets."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.domains import Domain, Domains, LabeledImages, as_domains
from metatoolkit.tasks.image_transforms import ImageTransform, transformed
from metatoolkit.tasks.learn2learn_import import import_learn2learn
from metatoolkit.tasks.resumable import ResumableBatches
from metatoolkit.tasks.task_source import check_integers


class Episode(NamedTuple):
    """A few-shot task; the label of an image is its place in the first dimension.

    Attributes:
        support: Images to learn from, of shape (ways, shots, channels, height, width).
        query: Images to classify, of shape (ways, queries, channels, height, width).
    """

    support: Tensor
    query: Tensor


class EpisodeBatches(ResumableBatches[Episode]):
    """An endless iterator over episodes, whose place can be stored and found again.

    An episode draws its domain, then its classes, then their images, each without replacement.
    Episode i depends on the seed and on i alone: learn2learn's tasksets load it, and a task
    transform of ours chooses its images, because learn2learn's own transforms draw from Python's
    global random state, which every thread of the process shares.

    Args:
        domains: A domain, or several to draw from, in any order or by name.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        ways: Classes per episode.
        shots: Support images per class.
        queries: Query images per class.
        seed: Seed of the draws and of the transform.
        transform: Called as ``transform(images, generator)`` with all images of an episode, which
            share their class in runs of ``shots + queries``; with a list where they differ in
            size. ``None`` scales uint8 images to [0, 1].
        device: Device to yield episodes on; ``None`` leaves them where they are.

    Raises:
        ConfigurationError: ``ways``, ``shots`` or ``queries`` is out of range.
        UnknownNameError: There is no such split.
        DataError: A domain has fewer classes than ``ways``, or a class has fewer images than
            ``shots + queries``.
        MissingDependencyError: learn2learn is not installed.

    Example:
        >>> from metatoolkit.tasks import default_domains
        >>> domains = default_domains(["digits", "textures"], size=16)
        >>> episode = next(EpisodeBatches(domains, "train", ways=3, shots=1, queries=5))
        >>> episode.support.shape, episode.query.shape
        (torch.Size([3, 1, 1, 16, 16]), torch.Size([3, 5, 1, 16, 16]))
    """

    kept = ("split", "ways", "shots", "queries", "role", "period")
    counters = ("next_episode",)
    noun = "episodes"

    def __init__(
        self,
        domains: Domains,
        split: str,
        ways: int,
        shots: int,
        queries: int,
        seed: int = 0,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_integers(2, ways=ways)
        check_integers(1, shots=shots, queries=queries)
        self.domains = as_domains(domains)
        self.split = split
        self.ways, self.shots, self.queries = ways, shots, queries
        self.seed = seed
        self.transform: Transform = ImageTransform() if transform is None else transform
        self.device = device
        self.role: int | None = None
        self.period = 1
        self.next_episode = 0
        self._tasks = [_Tasks(domain, split, ways, shots + queries) for domain in self.domains]

    @override
    def __next__(self) -> Episode:
        """Return the next episode."""
        episode = self.episode(self.next_episode)
        self.next_episode += 1
        return episode

    def episode(self, number: int) -> Episode:
        """Return one episode by its number, wherever this iterator is.

        Args:
            number: Number of the episode, from 0 on.
        """
        key = self.key(number)
        loaded = self._tasks[self._domain(number)].sample(fold_in(key, Stream.BATCH_PLACES))
        generator = torch.Generator().manual_seed(fold_in(key, Stream.BATCH_TRANSFORM))
        images = transformed(loaded, self.transform, generator, self.device)
        images = images.unflatten(0, (self.ways, self.shots + self.queries))
        return Episode(images[:, : self.shots], images[:, self.shots :])

    def key(self, number: int) -> int:
        """Return the random key of an episode.

        Args:
            number: Number of the episode, from 0 on.
        """
        stream = Stream.UNSEEN_EPISODES if self.role == 1 else Stream.EPISODES
        return fold_in(self.seed, stream, number)

    def domain_of(self, number: int) -> str:
        """Return the name of the domain of an episode.

        Args:
            number: Number of the episode, from 0 on.
        """
        return self.domains[self._domain(number)].name

    def _domain(self, number: int) -> int:
        count = len(self.domains)
        if self.role is None:
            draw = random.Random(fold_in(self.seed, Stream.EPISODE_DOMAINS, number))
            return draw.randrange(count)
        pair_key = fold_in(self.seed, Stream.EPISODE_DOMAINS, number // self.period)
        pair = random.Random(pair_key)
        return pair.sample(range(count), 2)[self.role]

    @override
    def _kept(self) -> dict[str, Any]:
        return {**super()._kept(), "domains": [domain.name for domain in self.domains]}


def pseudo_domains(
    domains: Domains,
    split: str,
    ways: int,
    shots: int,
    queries: int,
    seed: int = 0,
    transform: Transform | None = None,
    valid_transform: Transform | None = None,
    device: torch.device | str | None = None,
    period: int = 1,
) -> tuple[EpisodeBatches, EpisodeBatches]:
    """Return episodes of pseudo-seen and of pseudo-unseen domains.

    The i-th episodes of the two iterators come from two different domains, drawn at random, as in
    Tseng et al. (2020, arXiv:2001.08735, algorithm 1): meta-parameters that are learned on the
    first and judged on the second are rewarded for what carries over to a domain not seen.

    Args:
        domains: At least two domains to draw from, alone or by name.
        split: As in :class:`EpisodeBatches`.
        ways: As in :class:`EpisodeBatches`.
        shots: As in :class:`EpisodeBatches`.
        queries: As in :class:`EpisodeBatches`.
        seed: Seed of the pairs, the episodes and the transforms.
        transform: Transform of the pseudo-seen episodes.
        valid_transform: Transform of the pseudo-unseen episodes; ``None`` takes ``transform``.
        device: As in :class:`EpisodeBatches`.
        period: Episodes between draws of a pair; the published code takes 100, to open few files.

    Returns:
        Pseudo-seen and pseudo-unseen episodes.

    Raises:
        ConfigurationError: There is one domain only, or a number is out of range.
        UnknownNameError: There is no such split.
        DataError: As in :class:`EpisodeBatches`.
        MissingDependencyError: learn2learn is not installed.
    """
    given = as_domains(domains)
    if len(given) < 2:
        raise ConfigurationError(
            f"only the domain {given[0].name!r} was given; a pseudo-seen and a pseudo-unseen "
            "domain are two."
        )
    if period < 1:
        raise ConfigurationError(f"period is {period}; at least 1 is needed.")
    transforms = (transform, transform if valid_transform is None else valid_transform)
    seen, unseen = (
        EpisodeBatches(given, split, ways, shots, queries, seed, chosen, device)
        for chosen in transforms
    )
    for role, batches in enumerate((seen, unseen)):
        batches.role, batches.period = role, period
    return seen, unseen


class _Tasks:
    """learn2learn's taskset over one split of one domain, drawn from by key."""

    def __init__(self, domain: Domain, split: str, ways: int, images_per_class: int) -> None:
        images = domain.split(split)
        members = _members(domain.name, split, images, ways, images_per_class)
        data = import_learn2learn("EpisodeBatches").data
        dataset = data.MetaDataset(_Places(len(images.labels)), labels_to_indices=members)
        self._chosen: list[int] = []

        def describe(_: Any) -> list[Any]:
            return [data.DataDescription(index) for index in self._chosen]

        self._members = members
        self._ways, self._images_per_class = ways, images_per_class
        self._taskset = data.Taskset(
            dataset,
            task_transforms=[describe, data.transforms.LoadData(dataset)],
            task_collate=images.load,
        )

    def sample(self, key: int) -> Any:
        draw = random.Random(key)
        self._chosen = [
            index
            for label in draw.sample(range(len(self._members)), self._ways)
            for index in draw.sample(self._members[label], self._images_per_class)
        ]
        return self._taskset[0]


class _Places(torch.utils.data.Dataset[int]):
    """The place of each image instead of the image, so that an episode is loaded in one go."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def _members(
    name: str, split: str, images: LabeledImages, ways: int, images_per_class: int
) -> dict[int, list[int]]:
    classes = images.class_names
    if len(classes) < ways:
        raise DataError(
            f"the split {split!r} of domain {name!r} has {len(classes)} classes, fewer than the "
            f"{ways} ways of an episode; lower ways or leave the domain out."
        )
    members: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index, label in enumerate(images.labels.tolist()):
        members[label].append(index)
    for label, indices in members.items():
        if len(indices) < images_per_class:
            raise DataError(
                f"class {classes[label]!r} in the split {split!r} of domain {name!r} has "
                f"{len(indices)} images, fewer than the {images_per_class} of shots and queries; "
                "lower these."
            )
    return members
