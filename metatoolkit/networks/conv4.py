"""Conv-4, the small backbone of few-shot classification."""

from __future__ import annotations

from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.networks.arguments import check_positive, check_sides
from metatoolkit.networks.registry import BACKBONES


@BACKBONES.register("conv4")
class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, BatchNorm and ReLU; the first ones halve the image.

    From Vinyals et al. 2016 (arXiv 1606.04080) with four pooling steps; relation networks take two,
    so that a map is left to convolve.

    Args:
        channels: Channels of the images.
        width: Channels of the features.
        pools: Number of blocks, from the first, that end in 2×2 max pooling.

    Raises:
        ConfigurationError: An argument is out of range.

    Attributes:
        out_channels: Channels of the features.

    Example:
        >>> import torch
        >>> Conv4(channels=1, width=8)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, channels: int = 3, width: int = 64, pools: int = 4) -> None:
        super().__init__()
        check_positive(channels=channels, width=width)
        if not 0 <= pools <= 4:
            raise ConfigurationError(f"pools is {pools}; 0 to 4 blocks can pool.")
        blocks = []
        for index in range(4):
            layers: list[nn.Module] = [
                nn.Conv2d(channels if index == 0 else width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            blocks.append(nn.Sequential(*layers, *[nn.MaxPool2d(2)] * (index < pools)))
        self.blocks = nn.Sequential(*blocks)
        self.out_channels = width
        self.pools = pools

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps.

        Args:
            images: Images of shape (batch, channels, height, width), sides at least 2 to the power
                of ``pools``.

        Returns:
            Maps of shape (batch, width, height / 2^pools, width / 2^pools), rounded down.

        Raises:
            ShapeError: A side is shorter.
        """
        check_sides(images, 2**self.pools)
        features: Tensor = self.blocks(images)
        return features
