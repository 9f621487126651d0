"""Metric heads: they turn the features of an episode into logits of its queries.

Each is called as ``head(support, query)`` with features of shape (ways, shots, ...) and
(ways, queries, ...), and returns logits of shape (ways · queries, ways), the queries class by
class.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from metatoolkit.errors import UnknownNameError
from metatoolkit.networks.metric_heads.graph import GraphHead
from metatoolkit.networks.metric_heads.matching import MatchingHead
from metatoolkit.networks.metric_heads.prototypical import PrototypicalHead
from metatoolkit.networks.metric_heads.relation import RelationHead
from metatoolkit.networks.metric_heads.shapes import query_labels

__all__ = [
    "METRIC_HEADS",
    "GraphHead",
    "MatchingHead",
    "PrototypicalHead",
    "RelationHead",
    "build_metric_head",
    "query_labels",
]

METRIC_HEADS: dict[str, Callable[..., nn.Module]] = {
    "graph": GraphHead,
    "matching": MatchingHead,
    "prototypical": PrototypicalHead,
    "relation": RelationHead,
}


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
    if name not in METRIC_HEADS:
        raise UnknownNameError("metric head", name, METRIC_HEADS)
    build = METRIC_HEADS[name]
    given = {"feature_shape": tuple(feature_shape), "size": math.prod(feature_shape), "ways": ways}
    parameters = inspect.signature(build).parameters
    accepted = [key for key in parameters if key not in given and key not in ("args", "kwargs")]
    for option in options:
        if option not in accepted:
            raise UnknownNameError(f"option of metric head {name!r}:", option, accepted)
    return build(**{key: given[key] for key in parameters if key in given}, **options)
