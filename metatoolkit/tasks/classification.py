"""A classification data set, held in memory as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.tasks.image_transforms import ImageTransform
from metatoolkit.tasks.labels import check_labels


class Split(NamedTuple):
    """Images of shape (examples, channels, height, width) and their int64 labels (examples,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Classification:
    """A data set of images, in memory.

    Images are either floating point and normalized, or uint8 and normalized batch by batch, which
    takes a quarter of the memory: :meth:`transform` does what is needed in both cases.

    Attributes:
        name: Name of the data set.
        train_images: Images of shape (examples, channels, height, width), float32 or uint8.
        train_labels: Labels of shape (examples,), int64, from 0 on.
        test_images: Images like ``train_images``.
        test_labels: Labels like ``train_labels``.
        class_names: One name for each label.
        mean: Mean per channel of the pixels in [0, 1].
        std: Standard deviation per channel of the pixels in [0, 1].

    Raises:
        ShapeError: Images and labels do not fit together.
        LabelError: A label has no class.
        DataError: A type is not the one above, or a pixel is NaN or infinite.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            _check_images(f"{part}_images of {self.name}", images)
            check_labels(f"{part}_labels of {self.name}", labels, self.classes)
            if len(images) != len(labels):
                raise ShapeError(
                    f"{self.name} has {len(images)} {part}_images and {len(labels)} "
                    f"{part}_labels; one label for each image is needed."
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ShapeError(
                f"train_images of {self.name} have shape {tuple(self.train_images.shape[1:])}, "
                f"test_images {tuple(self.test_images.shape[1:])}; they must be equal."
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def train(self) -> Split:
        """Training images and labels."""
        return Split(self.train_images, self.train_labels)

    @property
    def test(self) -> Split:
        """Test images and labels."""
        return Split(self.test_images, self.test_labels)

    def transform(self, padding: int = 0, flip: bool = False) -> ImageTransform:
        """Return the transform that makes a batch of these images an input of a network.

        Args:
            padding: Pixels to reflect-pad before a random crop; 4 is usual for CIFAR.
            flip: Whether to mirror at random; not for digits.
        """
        return ImageTransform(self.mean, self.std, padding=padding, flip=flip)


def _check_images(name: str, images: Tensor) -> None:
    if images.dim() != 4:
        raise ShapeError(
            f"{name} have shape {tuple(images.shape)}; (examples, channels, height, width) is "
            "needed."
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"{name} are {kind}; uint8 or a floating-point type is needed.")
    finite = images.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise DataError(f"{name} hold NaN or infinity, first in image {index}.")
