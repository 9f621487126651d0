"""Batches of N-way K-shot classification tasks from the domains of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.networks.metric_heads import query_labels
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.domains import Domains
from metatoolkit.tasks.episodes import EpisodeBatches
from metatoolkit.tasks.task_source import Task, TaskSource, augmented


class FewShotTasks(TaskSource):
    """Few-shot classification: the episodes of :class:`EpisodeBatches`, labeled, in batches.

    A task has its labels from 0 on, in the random order in which its classes were drawn. Supports
    and queries are pairs of images, of shape (tasks, examples, channels, height, width), and
    labels, int64 of shape (tasks, examples), class by class.

    Args:
        domains: A domain, or several to draw from. Of a data set without splits by class,
            ``domain_of(name, ImageSet(images, labels, class_names))`` makes one.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        ways: Classes per task.
        shots: Support images per class.
        queries: Query images per class.
        tasks: Tasks per batch.
        seed: Seed of the tasks and the transforms.
        transform: Transform of all images of a task, as in :class:`EpisodeBatches`.
        support_transform: Called as ``support_transform(images, generator)`` with the support
            images of a task after that, to augment these alone.
        device: Device to yield batches on; ``None`` leaves them where they are.

    Raises:
        ConfigurationError: A number is out of range.
        UnknownNameError: There is no such split.
        DataError: A domain has fewer classes than ``ways``, or a class has fewer images than
            ``shots + queries``.
        MissingDependencyError: learn2learn is not installed.

    Example:
        >>> from metatoolkit.tasks import default_domains
        >>> digits = default_domains(["digits"], size=16)
        >>> tasks = FewShotTasks(digits, "train", ways=5, shots=1, queries=3, tasks=4)
        >>> (images, labels), query = next(tasks)
        >>> images.shape, labels[0].tolist(), query[0].shape
        (torch.Size([4, 5, 1, 16, 16]), [0, 1, 2, 3, 4], torch.Size([4, 15, 1, 16, 16]))
    """

    def __init__(
        self,
        domains: Domains,
        split: str,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        transform: Transform | None = None,
        support_transform: Transform | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._episodes = EpisodeBatches(
            domains, split, ways, shots, queries, seed, transform, device
        )
        self._support_transform = support_transform
        super().__init__(tasks, seed)

    @override
    def task(self, number: int) -> Task:
        support, query = self._episodes.episode(number)
        key = self._episodes.key(number)
        return augmented(_labeled(support), self._support_transform, key), _labeled(query)

    @override
    def _moved(self) -> None:
        self._episodes.reseed(self.seed)

    @override
    def _kept(self) -> dict[str, Any]:
        return {**super()._kept(), **self._episodes._kept()}


def _labeled(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images of shape (examples, ...) and their labels, from those of (ways, each, ...)."""
    ways, each = images.shape[:2]
    return images.flatten(0, 1), query_labels(ways, each, images.device)
