"""LeNet, as in the experiment that learns a rotation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ShapeError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.registry import NETWORKS


@NETWORKS.register("lenet")
class LeNet(nn.Module):
    """Two convolutions and three fully connected layers, with ReLU and max pooling.

    Args:
        classes: Number of outputs.
        channels: Channels of the images.
        size: Height and width of the images.

    Raises:
        ConfigurationError: An argument is less than 1.
        ShapeError: The images are too small.

    Example:
        >>> import torch
        >>> LeNet(classes=10, size=28)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        check_positive(classes=classes, channels=channels)
        side = (size // 2 - 4) // 2
        if side < 1:
            raise ShapeError(f"LeNet needs images of at least 12×12 pixels; size is {size}.")
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * side * side, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits.

        Args:
            images: Images of shape (batch, channels, size, size).

        Returns:
            Logits of shape (batch, classes).
        """
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        hidden = F.relu(self.linear1(hidden.flatten(1)))
        logits: Tensor = self.linear3(F.relu(self.linear2(hidden)))
        return logits
