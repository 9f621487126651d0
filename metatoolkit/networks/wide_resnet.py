"""Wide residual networks, WRN-28-10 by default."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.registry import NETWORKS


class _Block(nn.Module):
    """Pre-activation block; a 1×1 convolution is the shortcut where the channels change."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = (
            None if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        activated = F.relu(self.bn1(inputs))
        hidden = F.relu(self.bn2(self.conv1(activated)))
        if self.dropout is not None:
            hidden = self.dropout(hidden)
        shortcut = inputs if self.shortcut is None else self.shortcut(activated)
        output: Tensor = self.conv2(hidden) + shortcut
        return output


@NETWORKS.register("wide_resnet")
class WideResNet(nn.Module):
    """Wide residual network of Zagoruyko and Komodakis 2016 (arXiv:1605.07146).

    Args:
        classes: Number of outputs.
        depth: Number of convolutional layers, 6n + 4.
        width: Multiple of the channels 16, 32 and 64.
        dropout: Dropout probability between the convolutions of a block.
        channels: Channels of the images.

    Raises:
        ConfigurationError: ``depth`` is not 6n + 4, or another argument is out of range.

    Example:
        >>> import torch
        >>> WideResNet(classes=10, depth=10, width=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        classes: int = 10,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        check_positive(classes=classes, width=width, channels=channels)
        if depth < 10 or (depth - 4) % 6:
            raise ConfigurationError(f"depth is {depth}; 6n + 4 is needed: 10, 16, 22, 28, ….")
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"dropout is {dropout}; it must be from 0 to less than 1.")
        blocks = (depth - 4) // 6
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = self._stage(16, 16 * width, 1, blocks, dropout)
        self.stage2 = self._stage(16 * width, 32 * width, 2, blocks, dropout)
        self.stage3 = self._stage(32 * width, 64 * width, 2, blocks, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.classifier = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _stage(before: int, after: int, stride: int, blocks: int, dropout: float) -> nn.Sequential:
        first = _Block(before, after, stride, dropout)
        return nn.Sequential(first, *(_Block(after, after, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits.

        Args:
            images: Images of shape (batch, channels, height, width).

        Returns:
            Logits of shape (batch, classes).
        """
        hidden = self.stage3(self.stage2(self.stage1(self.conv(images))))
        logits: Tensor = self.classifier(F.relu(self.bn(hidden)).mean(dim=(2, 3)))
        return logits
