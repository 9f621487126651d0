"""ResNet-10, 18 and 34 as backbones of few-shot classification."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.registry import BACKBONES

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class _Block(nn.Module):
    """Two 3×3 convolutions; the shortcut is a 1×1 convolution where the channels change."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.projects = before != after
        if self.projects:
            self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(after)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        shortcut = self.shortcut_bn(self.shortcut(inputs)) if self.projects else inputs
        return F.relu(hidden + shortcut)


class FewShotResNet(nn.Module):
    """Residual network of He et al. 2015 (arXiv 1512.03385) that ends in its last feature map.

    Four stages of blocks with 64, 128, 256 and 512 channels, of which all but the first halve the
    image, as in Chen et al. 2019 (arXiv 1904.04232) and Tseng et al. 2020 (arXiv 2001.08735). At
    224 px the map is 512×7×7. Feature-wise transformation follows ``PLACEMENT``.

    Args:
        depth: 10, 18 or 34, with (1, 1, 1, 1), (2, 2, 2, 2) or (3, 4, 6, 3) blocks.
        channels: Channels of the images.
        width: Channels of the first stage; the last has eight times as many.
        stem: ``"large"``: 7×7 convolution with stride 2 and 3×3 max pooling with stride 2, for
            224 px; ``"small"``: 3×3 convolution with stride 1, for images of 28 to 84 px.

    Raises:
        ConfigurationError: An argument is out of range.

    Attributes:
        out_channels: Channels of the features, 8 · ``width``.

    Example:
        >>> import torch
        >>> FewShotResNet(10, channels=1, width=8, stem="small")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 64, 4, 4])
    """

    PLACEMENT = ("*.bn2", "*.shortcut_bn")

    def __init__(
        self,
        depth: int = 10,
        channels: int = 3,
        width: int = 64,
        stem: Literal["large", "small"] = "large",
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ConfigurationError(f"depth is {depth}; accepted: 10, 18, 34.")
        if stem not in ("large", "small"):
            raise ConfigurationError(f"stem is {stem!r}; accepted: 'large', 'small'.")
        check_positive(channels=channels, width=width)
        if stem == "large":
            self.conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.pool = nn.Identity()
        self.bn = nn.BatchNorm2d(width)
        stages, before = [], width
        for index, blocks in enumerate(_BLOCKS[depth]):
            after = width * 2**index
            first = _Block(before, after, stride=1 if index == 0 else 2)
            stages.append(
                nn.Sequential(first, *(_Block(after, after, 1) for _ in range(blocks - 1)))
            )
            before = after
        self.stages = nn.Sequential(*stages)
        self.out_channels = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps.

        Args:
            images: Images of shape (batch, channels, height, width).

        Returns:
            Maps of shape (batch, 8 · ``width``, h, w), h and w an eighth of the images' sides with
            the small stem and a thirty-second with the large one, rounded up.
        """
        features: Tensor = self.stages(self.pool(F.relu(self.bn(self.conv(images)))))
        return features


for _depth in (10, 18, 34):
    BACKBONES.register(f"resnet{_depth}")(partial(FewShotResNet, _depth))
