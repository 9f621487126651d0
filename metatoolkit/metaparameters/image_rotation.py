"""Rotation of image batches, differentiable in the angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, ShapeError

Interpolation = Literal["bilinear", "nearest"]
Fill = float | Sequence[float] | Tensor


def rotate(
    images: Tensor,
    angle: float | Tensor,
    *,
    fill: Fill = 0.0,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Rotate images about their center, counterclockwise for positive angles.

    The result is that of Pillow's ``Image.rotate`` by the same angle in degrees, but for pixels
    across the border of the image: these are interpolated with ``fill``, which stands outside, so
    that the result depends smoothly on the angle. Pixels are squares, whatever the image's sides.
    Normalized images are rotated just as raw ones are if ``fill`` is the normalized background.

    Args:
        images: Images of shape (batch, channels, height, width), floating point.
        angle: Angle in radians; with bilinear interpolation the result is differentiable in a 0-d
            tensor, in reverse and in forward mode and of second order.
        fill: Value outside of the images, one for all channels or one for each, in their units.
        interpolation: ``"bilinear"``, or ``"nearest"``, which takes no gradient to the angle.

    Returns:
        Images of the same shape and type; a few operations per pixel.

    Raises:
        ShapeError: The images do not have four dimensions, the angle is no scalar, or ``fill``
            has another number of channels.
        DataError: The images are not floating point.
        ConfigurationError: The interpolation is unknown, or the angle is not finite.
    """
    if images.dim() != 4:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; (batch, channels, height, width) is needed."
        )
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(
            f"images are {kind}; floating-point ones are needed, for instance what "
            "dataset.transform() returns."
        )
    if interpolation not in ("bilinear", "nearest"):
        raise ConfigurationError(
            f"interpolation is {interpolation!r}; accepted: 'bilinear', 'nearest'."
        )
    if not isinstance(angle, Tensor):
        if not math.isfinite(angle):
            raise ConfigurationError(f"angle is {angle}; a finite number of radians is needed.")
        angle = torch.tensor(angle, dtype=torch.float64)
    if angle.dim() != 0:
        raise ShapeError(f"angle has shape {tuple(angle.shape)}; a 0-d tensor is needed.")
    background = _background(fill, images)
    # Coordinates in half precision would be off by a tenth of a pixel.
    precise = torch.promote_types(images.dtype, torch.float32)
    matrix = _matrix(angle.to(images.device, precise), *images.shape[2:])
    grid = F.affine_grid(matrix, [1, 1, *images.shape[2:]], align_corners=False)

    def sample(values: Tensor) -> Tensor:
        # All images as channels of one: they share the grid, and the memory of its gradient.
        stacked = values.to(precise).reshape(1, -1, *images.shape[2:])
        moved = F.grid_sample(
            stacked, grid, mode=interpolation, padding_mode="zeros", align_corners=False
        )
        return moved.view(values.shape)

    outside = 1 - sample(images.new_ones(1, 1, *images.shape[2:]))
    return (sample(images) + background.to(precise) * outside).to(images.dtype)


def _matrix(angle: Tensor, height: int, width: int) -> Tensor:
    """Return the map from places in the result to places in the image, in units of half sides."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    zero = torch.zeros_like(cosine)
    rows = (cosine, -sine * (height / width), zero, sine * (width / height), cosine, zero)
    return torch.stack(rows).view(1, 2, 3)


def _background(fill: Fill, images: Tensor) -> Tensor:
    values = torch.as_tensor(fill, device=images.device)
    if values.dim() > 1 or (values.dim() == 1 and len(values) not in (1, images.shape[1])):
        raise ShapeError(
            f"fill has shape {tuple(values.shape)}, but the images have {images.shape[1]} "
            "channels; give one value, or one for each channel."
        )
    return values.reshape(-1, 1, 1)
