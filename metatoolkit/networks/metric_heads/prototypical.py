"""Prototypical networks: the nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metatoolkit.networks.metric_heads.shapes import vectors
from metatoolkit.networks.registry import METRIC_HEADS


@METRIC_HEADS.register("prototypical")
class PrototypicalHead(nn.Module):
    """Logits −‖q − p_c‖², with p_c the mean of the support features of class c.

    From Snell et al. 2017 (arXiv 1703.05175, equations 1 and 2). There is nothing to learn.

    Example:
        >>> support = torch.tensor([[[0.0]], [[2.0]]])
        >>> PrototypicalHead()(support, query=torch.tensor([[[0.5]], [[2.0]]]))
        tensor([[-0.2500, -2.2500],
                [-4.0000, -0.0000]])
    """

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits.

        Args:
            support: Features of shape (ways, shots, ...).
            query: Features of shape (ways, queries, ...).

        Returns:
            Logits of shape (ways · queries, ways).

        Raises:
            ShapeError: Support and query do not fit together.
        """
        examples, queries = vectors(support, query)
        prototypes = examples.mean(dim=1)
        # Not by the expanded square, whose terms cancel where features are large.
        differences = queries.unsqueeze(1) - prototypes
        return -torch.square(differences).sum(dim=2)
