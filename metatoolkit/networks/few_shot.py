"""Few-shot classifiers: a backbone and a metric head over whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.networks.metric_heads import build_metric_head
from metatoolkit.networks.registry import build_backbone


class FewShotNetwork(nn.Module):
    """Encodes all images of an episode as one batch, and scores its queries by a metric head.

    Args:
        encoder: Maps images of shape (batch, channels, height, width) to feature maps of shape
            (batch, C, h, w).
        head: Maps features of support and query to logits, see
            :mod:`metatoolkit.networks.metric_heads`.
        pool: Whether maps are averaged over their places, which leaves C values per image.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, pool: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pool = pool

    def encode(self, images: Tensor) -> Tensor:
        """Return the features that the head takes.

        Args:
            images: Images of shape (batch, channels, height, width).

        Returns:
            Features of shape (batch, C, 1, 1) where they are pooled, else (batch, C, h, w).
        """
        maps: Tensor = self.encoder(images)
        return maps.mean(dim=(2, 3), keepdim=True) if self.pool else maps

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits of an episode's queries.

        Args:
            support: Images of shape (ways, shots, channels, height, width).
            query: Images of shape (ways, queries, channels, height, width).

        Returns:
            Logits of shape (ways · queries, ways), the queries class by class.

        Raises:
            ShapeError: Support and query do not fit together.
        """
        images = torch.cat([support, query], dim=1)
        features = self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        logits: Tensor = self.head(features[:, : support.shape[1]], features[:, support.shape[1] :])
        return logits


def build_few_shot_network(
    backbone: str,
    head: str,
    ways: int,
    image_shape: Sequence[int],
    backbone_options: dict[str, Any] | None = None,
    head_options: dict[str, Any] | None = None,
) -> FewShotNetwork:
    """Build backbone and head by their names; maps are pooled unless the head compares maps.

    Args:
        backbone: See :func:`build_backbone`.
        head: See :func:`metatoolkit.networks.metric_heads.build_metric_head`.
        ways: Number of classes of an episode.
        image_shape: Channels, height and width of an image.
        backbone_options: Further arguments of the backbone.
        head_options: Further arguments of the head.

    Returns:
        The network, freshly initialized from the global random state.

    Raises:
        UnknownNameError: A name or an option is unknown.
        ConfigurationError: An option is out of range.
        ShapeError: The feature maps do not suit the head.

    Example:
        >>> network = build_few_shot_network(
        ...     "conv4", "prototypical", ways=3, image_shape=(1, 28, 28)
        ... )
        >>> network(torch.rand(3, 1, 1, 28, 28), torch.rand(3, 2, 1, 28, 28)).shape
        torch.Size([6, 3])
    """
    encoder = build_backbone(backbone, image_shape[0], **(backbone_options or {}))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        encoder.eval()
        shape = encoder(torch.zeros(1, *image_shape)).shape[1:]
        encoder.train()
    pool = head != "relation"
    shape = (shape[0], 1, 1) if pool else shape
    return FewShotNetwork(
        encoder, build_metric_head(head, shape, ways, **(head_options or {})), pool
    )
