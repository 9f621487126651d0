"""Networks of the published experiments, as plain modules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from metatoolkit.errors import ShapeError, UnknownNameError
from metatoolkit.networks.conv4 import Conv4
from metatoolkit.networks.few_shot import (
    BACKBONES,
    FewShotNetwork,
    build_backbone,
    build_few_shot_network,
)
from metatoolkit.networks.few_shot_resnet import FewShotResNet
from metatoolkit.networks.lenet import LeNet
from metatoolkit.networks.mlp import MLP
from metatoolkit.networks.resnet import ResNet32
from metatoolkit.networks.small_cnn import SmallCNN
from metatoolkit.networks.wide_resnet import WideResNet

__all__ = [
    "BACKBONES",
    "MLP",
    "NETWORKS",
    "Conv4",
    "FewShotNetwork",
    "FewShotResNet",
    "LeNet",
    "ResNet32",
    "SmallCNN",
    "WideResNet",
    "build_backbone",
    "build_few_shot_network",
    "build_network",
]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "mlp": MLP,
    "resnet32": ResNet32,
    "small_cnn": SmallCNN,
    "wide_resnet": WideResNet,
}


def build_network(name: str, classes: int, input_shape: Sequence[int], **options: Any) -> nn.Module:
    """Build a network by its name.

    Args:
        name: One of ``"lenet"``, ``"mlp"``, ``"resnet32"``, ``"small_cnn"``, ``"wide_resnet"``.
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
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    build = NETWORKS[name]
    from_shape = {"classes", "inputs", "channels", "size"}
    accepted = [key for key in inspect.signature(build).parameters if key not in from_shape]
    for option in options:
        if option not in accepted:
            raise UnknownNameError(f"option of network {name!r}:", option, accepted)
    if name == "mlp":
        return build(inputs=math.prod(input_shape), classes=classes, **options)
    if len(input_shape) != 3:
        raise ShapeError(
            f"input_shape is {tuple(input_shape)}; the network {name!r} needs (channels, height, "
            "width)."
        )
    channels, height, width = input_shape
    if name == "lenet":
        if height != width:
            raise ShapeError(f"LeNet takes square images, but they are {height}×{width}.")
        options["size"] = height
    return build(classes=classes, channels=channels, **options)
