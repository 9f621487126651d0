"""Batches of labeled images from one split of a domain, for ordinary classification."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.domains import Domain
from metatoolkit.tasks.image_transforms import ImageTransform, transformed
from metatoolkit.tasks.resumable import ResumableBatches


class LabeledBatches(ResumableBatches[tuple[Tensor, Tensor]]):
    """An endless iterator over batches of images and their labels, drawn at random.

    Batch i depends on the seed and on i alone. Within a batch no image comes twice.

    Args:
        domain: Domain to draw from.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        batch_size: Images per batch.
        seed: Seed of the draws and of the transform.
        transform: Called as ``transform(images, generator)``; ``None`` scales uint8 images to
            [0, 1].
        device: Device to yield batches on; ``None`` leaves them where they are.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1, or larger than the split.
        UnknownNameError: There is no such split.

    Attributes:
        classes: Number of classes of the split.
    """

    kept = ("batch_size",)

    def __init__(
        self,
        domain: Domain,
        split: str,
        batch_size: int,
        seed: int = 0,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._images = domain.split(split)
        count = len(self._images.labels)
        if not 1 <= batch_size <= count:
            raise ConfigurationError(
                f"batch_size is {batch_size}; the split {split!r} of domain {domain.name!r} has "
                f"{count} images, so 1 to {count} can be drawn."
            )
        self.classes = len(self._images.class_names)
        self.batch_size = batch_size
        self.seed = seed
        self.transform: Transform = ImageTransform() if transform is None else transform
        self.device = device
        self.next_batch = 0

    @override
    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: images of shape (batch, channels, height, width), and labels."""
        key = fold_in(self.seed, self.next_batch)
        labels = self._images.labels
        places = random.Random(fold_in(key, Stream.BATCH_PLACES)).sample(
            range(len(labels)), self.batch_size
        )
        generator = torch.Generator().manual_seed(fold_in(key, Stream.BATCH_TRANSFORM))
        images = transformed(self._images.load(places), self.transform, generator, self.device)
        targets = labels[torch.tensor(places)]
        self.next_batch += 1
        return images, targets if self.device is None else targets.to(self.device)
