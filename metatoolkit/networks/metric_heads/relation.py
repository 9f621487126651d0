"""Relation networks: a small network compares a query with each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ShapeError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.metric_heads.shapes import check_features
from metatoolkit.networks.registry import METRIC_HEADS


@METRIC_HEADS.register("relation")
class RelationHead(nn.Module):
    """Logits of a learned comparison of a query's feature map with each class's mean map.

    From Sung et al. 2018 (arXiv 1711.06025) as Tseng et al. 2020 (arXiv 2001.08735) use it: the two
    maps, one on top of the other, pass through two blocks of 3×3 convolution, BatchNorm, ReLU and
    2×2 max pooling, and two linear layers; the outputs of all classes are logits, with neither
    sigmoid nor squared error. 7,085,073 parameters for maps of 512×7×7.

    The published BatchNorm uses the statistics of the batch in eval mode, too, here those of all
    pairs of an episode: the score of a query then depends on the other queries, that is, the
    classifier is transductive. ``running_statistics`` makes it inductive.

    Args:
        feature_shape: Channels, height and width of a feature map.
        hidden: Size of the hidden linear layer.
        running_statistics: Whether eval mode uses running statistics.

    Raises:
        ConfigurationError: A size is less than 1.
        ShapeError: The maps are too small to be pooled twice.

    Example:
        >>> support, query = torch.rand(3, 1, 8, 4, 4), torch.rand(3, 2, 8, 4, 4)
        >>> RelationHead(feature_shape=(8, 4, 4))(support, query).shape
        torch.Size([6, 3])
    """

    def __init__(
        self, feature_shape: Sequence[int], hidden: int = 8, running_statistics: bool = False
    ) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise ShapeError(
                f"feature_shape is {tuple(feature_shape)}; channels, height and width are needed."
            )
        channels, height, width = feature_shape
        check_positive(channels=channels, hidden=hidden)
        # Large maps lose their border to the convolutions, small ones are padded.
        padding = 1 if height < 10 and width < 10 else 0
        sides = [height, width]
        for _ in range(2):
            sides = [(side - 2 + 2 * padding) // 2 for side in sides]
        if min(sides) < 1:
            raise ShapeError(
                f"feature maps of {height}×{width} are too small for two pooling steps; 4×4 is the "
                "least: let the encoder pool less."
            )
        self.feature_shape = (channels, height, width)

        def block(before: int) -> list[nn.Module]:
            norm = nn.BatchNorm2d(channels, track_running_stats=running_statistics)
            convolution = nn.Conv2d(before, channels, 3, padding=padding)
            return [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]

        self.compare = nn.Sequential(*block(2 * channels), *block(channels))
        self.linear1 = nn.Linear(channels * sides[0] * sides[1], hidden)
        self.linear2 = nn.Linear(hidden, 1)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits.

        Args:
            support: Feature maps of shape (ways, shots, channels, height, width).
            query: Feature maps of shape (ways, queries, channels, height, width).

        Returns:
            Logits of shape (ways · queries, ways).

        Raises:
            ShapeError: The maps have another shape, or support and query do not fit together.
        """
        check_features(support, query)
        if tuple(support.shape[2:]) != self.feature_shape:
            raise ShapeError(
                f"feature maps have shape {tuple(support.shape[2:])}; this head takes "
                f"{self.feature_shape}."
            )
        prototypes, queries = support.mean(dim=1), query.flatten(0, 1)
        shape = (len(queries), len(prototypes))
        pairs = torch.cat(
            [
                prototypes.expand(*shape, *self.feature_shape),
                queries.unsqueeze(1).expand(*shape, *self.feature_shape),
            ],
            dim=2,
        )
        compared = self.compare(pairs.flatten(0, 1)).flatten(1)
        logits: Tensor = self.linear2(F.relu(self.linear1(compared)))
        return logits.view(shape)
