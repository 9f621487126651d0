"""Batches of labeled images from one split of a domain, for ordinary classification."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.batches import Transform
from metatoolkit.tasks.domains import Domain
from metatoolkit.tasks.image_transforms import ImageTransform, transformed


class LabeledBatches:
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return this iterator itself: it goes on where it is."""
        return self

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

    def state_dict(self) -> dict[str, Any]:
        """Return the place of this iterator; the data are not part of it."""
        return {"seed": self.seed, "batch_size": self.batch_size, "next_batch": self.next_batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored place.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            CheckpointError: It belongs to batches of another size.
        """
        if state_dict.get("batch_size") != self.batch_size:
            raise CheckpointError(
                f"the stored batches have size {state_dict.get('batch_size')}, these have "
                f"{self.batch_size}; make them with the stored value."
            )
        self.seed, self.next_batch = state_dict["seed"], state_dict["next_batch"]
