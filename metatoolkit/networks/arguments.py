"""Checks of arguments and images that networks share."""

from __future__ import annotations

from torch import Tensor

from metatoolkit.errors import ConfigurationError, ShapeError


def check_positive(**values: int) -> None:
    """Check that sizes and counts are at least 1.

    Args:
        values: Arguments by name.

    Raises:
        ConfigurationError: One is less than 1; the message names it.
    """
    for name, value in values.items():
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; at least 1 is needed.")


def check_sides(images: Tensor, least: int) -> None:
    """Check that images are large enough for a network's poolings.

    Args:
        images: Images of shape (batch, channels, height, width).
        least: Smallest height and width.

    Raises:
        ShapeError: A side is shorter.
    """
    if min(images.shape[-2:]) < least:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; this network pools them and needs sides of "
            f"at least {least} pixels: give larger images, or a network that pools less."
        )
