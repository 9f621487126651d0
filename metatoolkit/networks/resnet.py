"""ResNet-32 for images of CIFAR size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.registry import NETWORKS


class _Block(nn.Module):
    """Two 3×3 convolutions, with a shortcut that has no parameters (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.extra = (after - before) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        shortcut = inputs
        if self.extra:
            shortcut = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(hidden + shortcut)


@NETWORKS.register("resnet32")
class ResNet32(nn.Module):
    """Residual network of He et al. 2015 (arXiv:1512.03385) for CIFAR, with option-A shortcuts.

    Three stages of five blocks with 16, 32 and 64 channels, each times ``width``. Convolutions and
    the classifier are initialized as in the reference code of Meta-Weight-Net.

    Args:
        classes: Number of outputs.
        width: Multiple of the channels.
        channels: Channels of the images.

    Raises:
        ConfigurationError: An argument is less than 1.

    Example:
        >>> import torch
        >>> ResNet32(classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10, width: int = 1, channels: int = 3) -> None:
        super().__init__()
        check_positive(classes=classes, width=width, channels=channels)
        self.conv = nn.Conv2d(channels, 16 * width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16 * width)
        self.stage1 = self._stage(16 * width, 16 * width, stride=1)
        self.stage2 = self._stage(16 * width, 32 * width, stride=2)
        self.stage3 = self._stage(32 * width, 64 * width, stride=2)
        self.classifier = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(before: int, after: int, stride: int) -> nn.Sequential:
        blocks = [_Block(before, after, stride)] + [_Block(after, after, 1) for _ in range(4)]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits.

        Args:
            images: Images of shape (batch, channels, height, width).

        Returns:
            Logits of shape (batch, classes).
        """
        hidden = F.relu(self.bn(self.conv(images)))
        hidden = self.stage3(self.stage2(self.stage1(hidden)))
        logits: Tensor = self.classifier(hidden.mean(dim=(2, 3)))
        return logits
