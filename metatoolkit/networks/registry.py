"""Networks, backbones and metric heads by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from metatoolkit.components.registry import Registry
from metatoolkit.errors import ShapeError

NETWORKS: Registry[nn.Module] = Registry("network", "metatoolkit.networks", "metatoolkit.networks")
"""Classifiers; those of their arguments that data determine are ``classes``, ``inputs``,
``channels`` and ``size``."""
BACKBONES: Registry[nn.Module] = Registry(
    "backbone", "metatoolkit.networks", "metatoolkit.backbones"
)
"""Encoders of images; data determine ``channels``."""
METRIC_HEADS: Registry[nn.Module] = Registry(
    "metric head", "metatoolkit.networks.metric_heads", "metatoolkit.metric_heads"
)
"""Heads of few-shot networks; data determine ``feature_shape``, ``size`` and ``ways``."""


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
    given = dict.fromkeys(("channels", "size")) | {"classes": classes}
    given["inputs"] = math.prod(input_shape)
    if "inputs" not in arguments:
        if len(input_shape) != 3:
            raise ShapeError(
                f"input_shape is {tuple(input_shape)}; the network {name!r} needs (channels, "
                "height, width)."
            )
        given["channels"], height, given["size"] = input_shape
        if "size" in arguments and height != given["size"]:
            raise ShapeError(
                f"the network {name!r} takes square images, but they are {height}×{given['size']}."
            )
    return NETWORKS.build_for(name, given, **options)


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
    return BACKBONES.build_for(name, {"channels": channels}, **options)
