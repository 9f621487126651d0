"""Prototypical networks: the nearest class mean, of an episode or of an inner step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metatoolkit.networks.arguments import check_positive
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
        return _logits(queries, examples.mean(dim=1))


class Prototypes(nn.Module):
    """A last layer with the logits of :class:`PrototypicalHead`, whose parameters are class means.

    They are zero until they are set, as by the inner step of
    :func:`metatoolkit.algorithms.build` ``("protonet", ...)``. Each has the mean of a constant
    feature 1 at its end, which tells the classes that were seen from those that were not: as soon
    as one was seen, those that were not have the logit −∞.

    Args:
        size: Number of values of one feature.
        ways: Number of classes, the largest of all tasks.
        dtype: Type of the means.
        device: Their device.

    Raises:
        ConfigurationError: A number is less than 1.

    Example:
        >>> head = Prototypes(size=1, ways=3)
        >>> with torch.no_grad():
        ...     head.means[:2] = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> head(torch.tensor([[0.5]])).detach()
        tensor([[-0.2500, -2.2500,    -inf]])
    """

    def __init__(
        self,
        size: int,
        ways: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        check_positive(size=size, ways=ways)
        self.means = nn.Parameter(torch.zeros(ways, size + 1, dtype=dtype, device=device))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, of shape (batch, ways).

        Args:
            features: Features of shape (batch, size).
        """
        logits = _logits(nn.functional.pad(features, (0, 1), value=1.0), self.means)
        unseen = self.means[:, -1] == 0
        return logits.masked_fill(unseen & ~unseen.all(), -torch.inf)


def _logits(features: Tensor, prototypes: Tensor) -> Tensor:
    # Not by the expanded square, whose terms cancel where features are large.
    return -torch.square(features.unsqueeze(1) - prototypes).sum(dim=2)
