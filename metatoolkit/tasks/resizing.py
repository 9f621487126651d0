"""Data sets of images brought to another size."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.tasks.classification import Classification


def resize_dataset(dataset: Classification, side: int, padding: int = 0) -> Classification:
    """Return a data set whose images are resized, then padded with black.

    Args:
        dataset: Data set, of images of any type that :class:`Classification` takes.
        side: Height and width to resize to, bilinearly and without aliasing, in pixels.
        padding: Pixels of value 0 to add on each side.

    Returns:
        The data set with float32 images of shape (examples, channels, side + 2 padding, side +
        2 padding), normalized by mean and standard deviation of the new training images.

    Raises:
        ConfigurationError: ``side`` is less than 1, or ``padding`` negative.

    Example:
        >>> import metatoolkit as mt
        >>> resize_dataset(mt.tasks.load_dataset("digits"), side=20, padding=4).input_shape
        (1, 28, 28)
    """
    if side < 1 or padding < 0:
        raise ConfigurationError(
            f"side is {side}, padding is {padding}; a side from 1 pixel on and a padding of at "
            "least 0 are needed."
        )

    def resize(images: Tensor) -> Tensor:
        pixels = raw_pixels(dataset, images)
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        return F.pad(pixels.clamp(0, 1), (padding,) * 4)

    train, test = resize(dataset.train_images), resize(dataset.test_images)
    mean = train.double().mean((0, 2, 3))
    std = train.double().std((0, 2, 3), correction=0)
    # A channel of one value has nothing to scale.
    std = std.where(std > 1e-6, 1.0)
    shift, scale = (values.float().view(-1, 1, 1) for values in (mean, std))
    return dataclasses.replace(
        dataset,
        train_images=(train - shift) / scale,
        test_images=(test - shift) / scale,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def raw_pixels(dataset: Classification, images: Tensor) -> Tensor:
    """Return images of a data set as float32 pixels, from 0 (black) to 1, not normalized.

    Args:
        dataset: The data set.
        images: Images of shape (examples, channels, height, width), as the data set holds them.
    """
    if not images.is_floating_point():
        return images.float() / 255
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return (images * std + mean).float()
