"""Normalization and augmentation of whole image batches, on whatever device they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, ShapeError


class ImageTransform:
    """Reflect-pad and crop, flip, and normalize a batch of images.

    Each image gets an offset and a flip of its own. Images of type uint8 become float32: scaled
    to [0, 1], less the mean, over the standard deviation. Floating-point images are taken to be
    normalized already and keep their values.

    Args:
        mean: Mean per channel, of pixels in [0, 1]; ``None`` only scales.
        std: Standard deviation per channel; ``None`` only scales.
        padding: Pixels to pad on each side, by reflection, before a crop of the original size at
            a random offset; 0 leaves the position alone.
        flip: Whether to mirror each image left to right with probability one half.

    Raises:
        ConfigurationError: ``padding`` is negative, only one of ``mean`` and ``std`` is given, or
            a standard deviation is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        padding: int = 0,
        flip: bool = False,
    ) -> None:
        if padding < 0:
            raise ConfigurationError(f"padding is {padding}; at least 0 is needed.")
        if (mean is None) != (std is None):
            raise ConfigurationError("mean and std belong together: give both or neither.")
        if std is not None and min(std) <= 0:
            raise ConfigurationError(f"std is {tuple(std)}; each value must be positive.")
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.padding = padding
        self.flip = flip
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform one batch.

        Args:
            images: Images of shape (batch, channels, height, width), uint8 or floating point.
            generator: CPU generator of the offsets and flips, whatever the images' device, so
                that they are the same on each device; ``None`` draws from the global state.

        Returns:
            Floating-point images of the same shape; the input is not modified.

        Raises:
            ShapeError: The images do not have four dimensions, are too small for the padding, or
                have another number of channels than the mean.
        """
        if images.dim() != 4:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; (batch, channels, height, width) is "
                "needed."
            )
        if self.padding or self.flip:
            images = self._move(images, generator)
        return self._normalize(images)

    def _move(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        count, _, height, width = images.shape
        if self.padding >= min(height, width):
            raise ShapeError(
                f"padding is {self.padding}, but the images are {height}×{width}; reflection "
                "needs a padding smaller than either side."
            )
        # Only the draws travel to a GPU, without waiting for it; the rest is computed there.
        span = (2, count, 1)
        offsets = torch.randint(-self.padding, self.padding + 1, span, generator=generator)
        offsets = offsets.to(images.device, non_blocking=True)
        rows = _reflect(torch.arange(height, device=images.device) + offsets[0], height)
        columns = _reflect(torch.arange(width, device=images.device) + offsets[1], width)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            mirrored = mirrored.to(images.device, non_blocking=True)
            columns = torch.where(mirrored, columns.flip(1), columns)
        places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        flat = images.flatten(2)
        return flat.gather(2, places[:, None].expand_as(flat)).view_as(images)

    def _normalize(self, images: Tensor) -> Tensor:
        if images.is_floating_point():
            return images
        images = images.to(torch.float32).div_(255)
        if self.mean is None or self.std is None:
            return images
        if len(self.mean) != images.shape[1]:
            raise ShapeError(
                f"images have {images.shape[1]} channels, but mean and std have {len(self.mean)}."
            )
        if images.device not in self._constants:
            self._constants[images.device] = (
                torch.tensor(self.mean, device=images.device).view(-1, 1, 1),
                torch.tensor(self.std, device=images.device).view(-1, 1, 1),
            )
        mean, std = self._constants[images.device]
        return images.sub_(mean).div_(std)

    def __repr__(self) -> str:
        return (
            f"ImageTransform(mean={self.mean}, std={self.std}, padding={self.padding}, "
            f"flip={self.flip})"
        )


def transformed(
    images: Tensor | Sequence[Tensor],
    transform: Callable[[Any, torch.Generator], Tensor],
    generator: torch.Generator,
    device: torch.device | str | None = None,
) -> Tensor:
    """Move images to a device and transform them there, whether or not they have one size.

    Args:
        images: Images of shape (channels, height, width), as one tensor or one by one.
        transform: Called as ``transform(images, generator)``, with a list where sizes differ.
        generator: CPU generator that the transform draws from.
        device: Device; ``None`` leaves the images where they are.

    Returns:
        Images of shape (images, channels, height, width).

    Raises:
        ShapeError: The images differ in size, and the transform does not give them one.
    """
    if not isinstance(images, Tensor) and len({image.shape for image in images}) == 1:
        images = torch.stack(list(images))
    if device is not None:
        if isinstance(images, Tensor):
            images = images.to(device, non_blocking=True)
        else:
            images = [image.to(device, non_blocking=True) for image in images]
    stacked = isinstance(images, Tensor) or not isinstance(transform, ImageTransform)
    result: Any = transform(images, generator) if stacked else images
    if not isinstance(result, Tensor):
        raise ShapeError(
            "the images differ in size; pass a transform that gives them one, for instance "
            "PhotoTransform."
        )
    return result


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
