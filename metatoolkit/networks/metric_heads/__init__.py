"""Metric heads: they turn the features of an episode into logits of its queries.

Each is called as ``head(support, query)`` with features of shape (ways, shots, ...) and
(ways, queries, ...), and returns logits of shape (ways · queries, ways), the queries class by
class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from metatoolkit.networks.metric_heads.graph import GraphHead
from metatoolkit.networks.metric_heads.matching import MatchingHead
from metatoolkit.networks.metric_heads.prototypical import Prototypes, PrototypicalHead
from metatoolkit.networks.metric_heads.relation import RelationHead
from metatoolkit.networks.metric_heads.shapes import query_labels
from metatoolkit.networks.registry import METRIC_HEADS

__all__ = [
    "METRIC_HEADS",
    "GraphHead",
    "MatchingHead",
    "Prototypes",
    "PrototypicalHead",
    "RelationHead",
    "build_metric_head",
    "query_labels",
]


def build_metric_head(
    name: str, feature_shape: Sequence[int], ways: int, **options: Any
) -> nn.Module:
    """Build a metric head by its name.

    Args:
        name: One of ``"graph"``, ``"matching"``, ``"prototypical"``, ``"relation"``.
        feature_shape: Shape of one image's features: (channels, height, width) for
            ``"relation"``, any other shape else.
        ways: Number of classes of an episode.
        options: Further arguments of the head's class, for instance ``running_statistics=True``.

    Returns:
        The head, freshly initialized from the global random state.

    Raises:
        UnknownNameError: There is no such head, or it has no such option.
        ConfigurationError: An option is out of range.
        ShapeError: The features do not suit the head.
    """
    given = {"feature_shape": tuple(feature_shape), "size": math.prod(feature_shape), "ways": ways}
    return METRIC_HEADS.build_for(name, given, **options)
