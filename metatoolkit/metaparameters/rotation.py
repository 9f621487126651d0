"""One angle by which images are rotated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters.image_rotation import rotate
from metatoolkit.metaparameters.registry import modules


@modules.register()
class Rotation(nn.Module):
    """Rotates image batches about their centers by an angle that is learned.

    The meta-parameter of the rotated-digits experiment in EvoGrad (Bohdal et al. 2021, arXiv
    2106.10575): the training images are rotated so that a network trained on them fits validation
    images of another orientation. The sampling is bilinear (:func:`metatoolkit.tasks.rotate`),
    so that every estimator applies.

    Args:
        angle: Initial angle in radians, counterclockwise.
        fill: Value outside of the images in their own units, one for all channels or one for each:
            after normalization the background is (0 − mean) / std, not 0.

    Raises:
        ConfigurationError: The angle or a fill value is not finite.

    Example:
        >>> rotation = Rotation(angle=0.5)
        >>> rotation(torch.zeros(2, 1, 8, 8)).shape, round(rotation.degrees, 1)
        (torch.Size([2, 1, 8, 8]), 28.6)
    """

    fill: Tensor

    def __init__(self, angle: float = 0.0, fill: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        values = [float(fill)] if isinstance(fill, int | float) else [float(v) for v in fill]
        if not math.isfinite(angle) or not values or not all(map(math.isfinite, values)):
            raise ConfigurationError(
                f"angle is {angle}, fill is {fill}; a finite number of radians, and one finite "
                "value or one for each channel, are needed."
            )
        self.angle = nn.Parameter(torch.tensor(float(angle)))
        self.register_buffer("fill", torch.tensor(values), persistent=False)

    @property
    def degrees(self) -> float:
        """The present angle in degrees."""
        return math.degrees(float(self.angle.detach()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images rotated by the angle.

        Args:
            images: Images of shape (batch, channels, height, width), floating point.

        Returns:
            Images of the same shape and type.

        Raises:
            ShapeError: The images do not have four dimensions, or ``fill`` has another number of
                channels.
            DataError: The images are not floating point.
        """
        return rotate(images, self.angle, fill=self.fill)

    def extra_repr(self) -> str:
        """Return what tells this module from another one."""
        return f"degrees={self.degrees:.1f}, fill={self.fill.tolist()}"
