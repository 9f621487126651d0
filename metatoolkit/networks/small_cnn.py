"""Small convolutional network for small images, such as digits of 8×8 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from metatoolkit.networks.arguments import check_positive, check_sides
from metatoolkit.networks.registry import NETWORKS


@NETWORKS.register("small_cnn")
class SmallCNN(nn.Module):
    """Three convolutions with BatchNorm, one pooling step and a global average.

    Args:
        channels: Channels of the images.
        classes: Number of outputs.
        width: Channels after the first convolution; twice as many after the others.

    Raises:
        ConfigurationError: An argument is less than 1.

    Example:
        >>> import torch
        >>> SmallCNN(classes=10, width=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        check_positive(channels=channels, classes=classes, width=width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits.

        Args:
            images: Images of shape (batch, channels, height, width), each side at least 2.

        Returns:
            Logits of shape (batch, classes).

        Raises:
            ShapeError: A side is shorter.
        """
        check_sides(images, 2)
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits
