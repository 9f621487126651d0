"""Batches of regression tasks from images, each an image as a function of the place in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import DataError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.domains import Domain
from metatoolkit.tasks.task_arrays import draw_rows, whose_turn
from metatoolkit.tasks.task_source import Task, TaskSource, check_integers


class PixelTasks(TaskSource):
    """Image completion: a task is an image, some pixels of which are known and others asked.

    The regression from places to values of Garnelo et al. 2018, arXiv 1807.01613, section 4.2.
    Inputs are rows and columns from −1 to 1, targets the channels, uint8 scaled to [0, 1]. The
    images of a split take turns in random order. A task draws its pixels without replacement,
    first the support and then the query.

    Args:
        domain: Domain of the images.
        split: ``"train"``, ``"valid"`` or ``"test"``, which have no class in common.
        shots: Support pixels per task.
        queries: Query pixels per task.
        tasks: Tasks per batch.
        seed: Seed of the tasks.

    Raises:
        ConfigurationError: A number is out of range.
        DataError: An image has fewer pixels than ``shots + queries``; or it cannot be read.
        UnknownNameError: There is no such split.

    Example:
        >>> from metatoolkit.tasks import default_domains
        >>> digits = default_domains(["digits"], size=8)["digits"]
        >>> (inputs, targets), query = next(
        ...     PixelTasks(digits, "train", shots=20, queries=44, tasks=4)
        ... )
        >>> inputs.shape, targets.shape, query[0].shape
        (torch.Size([4, 20, 2]), torch.Size([4, 20, 1]), torch.Size([4, 44, 2]))
    """

    kept = ("tasks", "shots", "queries", "split", "count")

    def __init__(
        self, domain: Domain, split: str, *, shots: int, queries: int, tasks: int, seed: int = 0
    ) -> None:
        check_integers(1, shots=shots, queries=queries)
        self._domain, self._images = domain.name, domain.split(split)
        self.split, self.count = split, len(self._images.labels)
        self.shots, self.queries = shots, queries
        super().__init__(tasks, seed)
        self.task(0)

    @override
    def task(self, number: int) -> Task:
        place = whose_turn(self.seed, number, self.count)
        inputs, targets = _pixels(self._images.load([place])[0])
        asked = self.shots + self.queries
        if len(inputs) < asked:
            raise DataError(
                f"image {place} in the split {self.split!r} of domain {self._domain!r} has "
                f"{len(inputs)} pixels, fewer than the {asked} of shots and queries; lower these, "
                "or take larger images."
            )
        key = fold_in(self.seed, Stream.PIXELS, number)
        support, query = draw_rows(len(inputs), self.shots, self.queries, key)
        return (inputs[support], targets[support]), (inputs[query], targets[query])

    @override
    def _kept(self) -> dict[str, Any]:
        return {**super()._kept(), "domain": self._domain}


def _pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of pixels, of shape (pixels, 2), and their (pixels, channels) values."""
    values = image if image.is_floating_point() else image.to(torch.get_default_dtype()) / 255
    sides = [torch.linspace(-1, 1, side, dtype=values.dtype) for side in image.shape[1:]]
    return torch.cartesian_prod(*sides), values.flatten(1).T
