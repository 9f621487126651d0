"""Shapes that metric heads share."""

from __future__ import annotations

import torch
from torch import Tensor

from metatoolkit.errors import ShapeError


def check_features(support: Tensor, query: Tensor) -> None:
    """Check that the features of an episode fit together.

    Args:
        support: Features of shape (ways, shots, ...).
        query: Features of shape (ways, queries, ...).

    Raises:
        ShapeError: They do not.
    """
    if (
        support.dim() < 3
        or support.dim() != query.dim()
        or len(support) != len(query)
        or support.shape[2:] != query.shape[2:]
    ):
        raise ShapeError(
            f"support features have shape {tuple(support.shape)}, query features "
            f"{tuple(query.shape)}; (ways, shots, ...) and (ways, queries, ...) with the same ways "
            "and the same features are needed."
        )


def vectors(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Return support features of shape (ways, shots, size), and query of (ways · queries, size).

    Args:
        support: Features of shape (ways, shots, ...).
        query: Features of shape (ways, queries, ...).

    Raises:
        ShapeError: They do not fit together.
    """
    check_features(support, query)
    return support.flatten(2), query.flatten(0, 1).flatten(1)


def query_labels(ways: int, queries: int, device: torch.device | None = None) -> Tensor:
    """Return the labels of an episode's queries in the order of the logits' rows.

    Args:
        ways: Number of classes.
        queries: Queries per class.
        device: Where to make them.

    Returns:
        Labels of shape (ways · queries,), int64: 0, …, 0, 1, …, 1, ….
    """
    return torch.arange(ways, device=device).repeat_interleave(queries)
