"""What loaders of data sets in memory share: a test part, and the order of axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import DataError


def held_out_mask(labels: Tensor, class_names: Sequence[str], fraction: float) -> Tensor:
    """Mark evenly spaced examples of each class as test part, at least one and never all.

    Args:
        labels: Labels of shape (examples,).
        class_names: One name for each label.
        fraction: Fraction of each class to mark, above 0 and below 1.

    Returns:
        A mask of shape (examples,), bool.

    Raises:
        DataError: A class has fewer than two examples.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        count = len(members)
        if count < 2:
            raise DataError(
                f"class {name!r} has {count} image(s); at least 2 are needed to split off a test "
                "part."
            )
        held = min(max(round(count * fraction), 1), count - 1)
        place = torch.arange(count)
        mask[members] = (place + 1) * held // count > place * held // count
    return mask


def channels_first(images: np.ndarray) -> Tensor:
    """Return images of shape (examples, height, width, channels) with the channels in front.

    Args:
        images: The images.
    """
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
