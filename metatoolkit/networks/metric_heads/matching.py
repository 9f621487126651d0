"""Matching networks: attention over the support examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ShapeError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.metric_heads.shapes import vectors
from metatoolkit.networks.registry import METRIC_HEADS


@METRIC_HEADS.register("matching")
class MatchingHead(nn.Module):
    """Logits log Σ_{i of class c} a(q, x_i), a the softmax of scaled cosines over the support.

    From Vinyals et al. 2016 (arXiv 1606.04080, section 2.1). With ``context``, support features
    pass through a bidirectional LSTM over the support set, and each query through an LSTM that
    attends to it (full context embeddings, appendix A); the order of the support set then has a
    say. The LSTMs run step by step, since cuDNN's cannot be differentiated twice.

    Args:
        size: Number of values of one feature.
        context: Whether features are embedded in the context of the support set.
        steps: Steps of the attending LSTM; ``None`` for the number of support examples.
        scale: Factor of the cosines, 100 in the code of Chen et al. 2019 (arXiv 1904.04232).

    Raises:
        ConfigurationError: ``size`` or ``steps`` is less than 1.

    Example:
        >>> support = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
        >>> head = MatchingHead(size=2, context=False, scale=1.0)
        >>> head(support, query=support).exp()  # softmax of cosines 1 and 0
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])
    """

    def __init__(
        self, size: int, context: bool = True, steps: int | None = None, scale: float = 100.0
    ) -> None:
        super().__init__()
        check_positive(size=size, steps=1 if steps is None else steps)
        self.size, self.steps, self.scale = size, steps, scale
        self.forward_cell = nn.LSTMCell(size, size) if context else None
        self.backward_cell = nn.LSTMCell(size, size) if context else None
        self.attending_cell = nn.LSTMCell(2 * size, size) if context else None

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits, which are log-probabilities.

        Args:
            support: Features of shape (ways, shots, ...), ``size`` values each.
            query: Features of shape (ways, queries, ...).

        Returns:
            Logits of shape (ways · queries, ways).

        Raises:
            ShapeError: Support and query do not fit together, or have another size.
        """
        examples, queries = vectors(support, query)
        ways, shots, size = examples.shape
        if size != self.size:
            raise ShapeError(f"features have {size} values; this head takes {self.size}.")
        examples = examples.flatten(0, 1)
        if self.attending_cell is not None:
            examples = self._embed_support(examples)
            queries = self._embed_queries(queries, examples, self.attending_cell)
        cosines = F.normalize(queries, dim=1) @ F.normalize(examples, dim=1).T
        attention = torch.log_softmax(self.scale * cosines, dim=1)
        return attention.unflatten(1, (ways, shots)).logsumexp(dim=2)

    def _embed_support(self, examples: Tensor) -> Tensor:
        """Return x_i plus the two LSTMs' outputs at it, shape (examples, size)."""
        total = examples
        order = list(range(len(examples)))
        for cell, places in ((self.forward_cell, order), (self.backward_cell, order[::-1])):
            assert cell is not None
            hidden = memory = examples.new_zeros(1, self.size)
            outputs: dict[int, Tensor] = {}
            for place in places:
                hidden, memory = cell(examples[place : place + 1], (hidden, memory))
                outputs[place] = hidden
            total = total + torch.cat([outputs[place] for place in order])
        return total

    def _embed_queries(self, queries: Tensor, examples: Tensor, cell: nn.LSTMCell) -> Tensor:
        hidden, memory = queries, torch.zeros_like(queries)
        for _ in range(self.steps or len(examples)):
            read = torch.softmax(hidden @ examples.T, dim=1) @ examples
            hidden, memory = cell(torch.cat([queries, read], dim=1), (hidden, memory))
            hidden = hidden + queries
        return hidden
