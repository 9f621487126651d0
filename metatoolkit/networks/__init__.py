"""Networks of the published experiments, as plain modules."""

from __future__ import annotations

from metatoolkit.networks.conv4 import Conv4
from metatoolkit.networks.few_shot import (
    FewShotNetwork,
    build_few_shot_network,
)
from metatoolkit.networks.few_shot_resnet import FewShotResNet
from metatoolkit.networks.lenet import LeNet
from metatoolkit.networks.mlp import MLP
from metatoolkit.networks.registry import BACKBONES, NETWORKS, build_backbone, build_network
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
    "build",
    "build_backbone",
    "build_few_shot_network",
    "build_network",
]

build = build_network
