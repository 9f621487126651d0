"""Crops and augmentation of photographs of any size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, ShapeError, optional_import
from metatoolkit.randomness import seeded

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class PhotoTransform:
    """Cut photographs to one size and normalize them.

    With ``augment``: a random resized crop, jitter of brightness, contrast and saturation by up to
    40 %, and a flip with probability one half, each image for itself, as Tseng et al. (2020,
    arXiv:2001.08735) train. Without: the image resized to a square of 1.15 times the size, and its
    center cut out.

    Args:
        size: Side of the result in pixels.
        augment: Whether to augment at random.
        mean: Mean per channel, of pixels in [0, 1]; the default is ImageNet's.
        std: Standard deviation per channel.

    Raises:
        ConfigurationError: ``size`` is less than 1, or a standard deviation is not positive.
        MissingDependencyError: torchvision is not installed.
    """

    def __init__(
        self,
        size: int = 224,
        augment: bool = False,
        mean: Sequence[float] = _IMAGENET_MEAN,
        std: Sequence[float] = _IMAGENET_STD,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"size is {size!r}; an integer from 1 on is needed.")
        if min(std) <= 0:
            raise ConfigurationError(f"std is {tuple(std)}; each value must be positive.")
        with optional_import("PhotoTransform"):
            from torchvision.transforms import v2
        self.size, self.augment = size, augment
        self.mean, self.std = tuple(mean), tuple(std)
        if augment:
            moves = [
                v2.RandomResizedCrop((size, size), antialias=True),
                v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
                v2.RandomHorizontalFlip(),
            ]
        else:
            large = int(1.15 * size)
            moves = [v2.Resize((large, large), antialias=True), v2.CenterCrop((size, size))]
        self._transform = v2.Compose(
            [*moves, v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        )

    def __call__(
        self, images: Tensor | Iterable[Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Transform images.

        Args:
            images: Images of shape (channels, height, width), uint8 or floating point in [0, 1],
                as one tensor or as a list of tensors of different sizes.
            generator: CPU generator of the crops, jitter and flips; ``None`` draws from the global
                state.

        Returns:
            Normalized float32 images of shape (images, channels, size, size).

        Raises:
            ShapeError: An image has another number of channels than the mean.
        """
        given = list(images)
        for image in given:
            if image.dim() != 3 or len(image) != len(self.mean):
                raise ShapeError(
                    f"an image has shape {tuple(image.shape)}; ({len(self.mean)}, height, width) "
                    "is needed."
                )
        if not self.augment:
            return torch.stack([self._transform(image) for image in given])
        key = int(torch.randint(2**62, (1,), generator=generator))
        # torchvision draws from the global state.
        with seeded(key):
            return torch.stack([self._transform(image) for image in given])

    def __repr__(self) -> str:
        return f"PhotoTransform(size={self.size}, augment={self.augment})"
