"""Networks and backbones by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from metatoolkit.components.registry import Registry
from metatoolkit.errors import ShapeError, UnknownNameError

NETWORKS: Registry[nn.Module] = Registry("network", "metatoolkit.networks", "metatoolkit.networks")
"""Classifiers; those of their arguments that data determine are ``classes``, ``inputs``,
``channels`` and ``size``."""
BACKBONES: Registry[nn.Module] = Registry(
    "backbone", "metatoolkit.networks", "metatoolkit.backbones"
)
"""Encoders of images; data determine ``channels``."""


def build_network(name: str, classes: int, input_shape: Sequence[int], **options: Any) -> nn.Module:
    """Build a network by its name.

    Args:
        name: One of :data:`NETWORKS`, for instance ``"mlp"``.
        classes: Number of classes, the length of the output.
        input_shape: Shape of one input: (channels, height, width), or any shape for an MLP.
        options: Further arguments of the network's class, for instance ``width=2``.

    Returns:
        The network, freshly initialized from the global random state.

    Raises:
        UnknownNameError: There is no such network, or it has no such option.
        ConfigurationError: An option is out of range.
        ShapeError: The network does not take inputs of this shape.
    """
    arguments = NETWORKS.options(name)
    _refuse_unknown(f"option of network {name!r}:", options, arguments)
    if "classes" in arguments:
        options["classes"] = classes
    if "inputs" in arguments:
        options["inputs"] = math.prod(input_shape)
        return NETWORKS.build(name, **options)
    if len(input_shape) != 3:
        raise ShapeError(
            f"input_shape is {tuple(input_shape)}; the network {name!r} needs (channels, height, "
            "width)."
        )
    channels, height, width = input_shape
    if "channels" in arguments:
        options["channels"] = channels
    if "size" in arguments:
        if height != width:
            raise ShapeError(
                f"the network {name!r} takes square images, but they are {height}×{width}."
            )
        options["size"] = height
    return NETWORKS.build(name, **options)


def build_backbone(name: str, channels: int = 3, **options: Any) -> nn.Module:
    """Build a backbone by its name.

    Args:
        name: One of :data:`BACKBONES`, for instance ``"conv4"``.
        channels: Channels of the images.
        options: Further arguments of the backbone's class, for instance ``width=16``.

    Returns:
        The backbone, freshly initialized from the global random state.

    Raises:
        UnknownNameError: There is no such backbone, or it has no such option.
        ConfigurationError: An option is out of range.
    """
    _refuse_unknown(f"option of backbone {name!r}:", options, BACKBONES.options(name))
    return BACKBONES.build(name, channels=channels, **options)


def _refuse_unknown(what: str, options: dict[str, Any], accepted: Any) -> None:
    own = [name for name in accepted if name not in ("classes", "inputs", "channels", "size")]
    for option in options:
        if option not in own:
            raise UnknownNameError(what, option, own)
