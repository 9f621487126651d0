"""Graph networks for few-shot classification."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import ShapeError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.metric_heads.shapes import vectors
from metatoolkit.networks.registry import METRIC_HEADS


@METRIC_HEADS.register("graph")
class GraphHead(nn.Module):
    """Logits of a graph network over the support examples and one query.

    From Garcia and Bruna 2018 (arXiv 1711.04043, section 4). Nodes are embedded features, each with
    its one-hot label, the query with 1 / ways instead. A layer computes edges A, the softmax over
    the other nodes of a network of |x_i − x_j|, and appends leaky ReLU(BatchNorm(W [x, A x])) to
    the nodes; after the last one, W [x, A x] of the query are its logits. Each query has a graph of
    its own. The code of Tseng et al. 2020 puts one query of every class into one graph, and so
    tells the network that no two of them are of one class.

    The published BatchNorm uses the statistics of the batch in eval mode, too, so that the graphs
    of an episode hang together (the classifier is transductive); ``running_statistics`` makes it
    inductive.

    Cost: quadratic in the nodes, ways · shots + 1 for each of the ways · queries graphs.

    Args:
        size: Number of values of one feature.
        ways: Number of classes.
        embedding: Size of the embedded features.
        hidden: Size n of the layers: edges come from networks of 2 n, 2 n, n and n units, and a
            layer appends n / 2 values.
        layers: Number of layers before the last.
        running_statistics: Whether eval mode uses running statistics.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> support, query = torch.rand(3, 1, 8), torch.rand(3, 2, 8)
        >>> GraphHead(size=8, ways=3)(support, query).shape
        torch.Size([6, 3])
    """

    def __init__(
        self,
        size: int,
        ways: int,
        embedding: int = 128,
        hidden: int = 96,
        layers: int = 2,
        running_statistics: bool = False,
    ) -> None:
        super().__init__()
        check_positive(size=size, embedding=embedding, layers=layers)
        check_positive(ways=ways, hidden=hidden // 2)
        self.size, self.ways = size, ways
        self.embed = _NormedLinear(size, embedding, running_statistics)
        self.edges, self.updates = nn.ModuleList(), nn.ModuleList()
        width = embedding + ways
        for _ in range(layers):
            self.edges.append(_Edges(width, hidden, running_statistics))
            self.updates.append(_NormedLinear(2 * width, hidden // 2, running_statistics))
            width += hidden // 2
        self.last_edges = _Edges(width, hidden, running_statistics)
        self.last = nn.Linear(2 * width, ways)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the logits.

        Args:
            support: Features of shape (ways, shots, ...), ``size`` values each.
            query: Features of shape (ways, queries, ...).

        Returns:
            Logits of shape (ways · queries, ways).

        Raises:
            ShapeError: Support and query do not fit together, or have another size or other ways.
        """
        examples, queries = vectors(support, query)
        ways, shots, size = examples.shape
        if size != self.size or ways != self.ways:
            raise ShapeError(
                f"the episode has {ways} ways and features of {size} values; this head takes "
                f"{self.ways} ways and {self.size} values."
            )
        # Embedded together: the BatchNorm here, too, sees each image once.
        embedded = self.embed(torch.cat([examples.flatten(0, 1), queries]))
        known, asked = embedded[: ways * shots], embedded[ways * shots :]
        labels = torch.eye(ways, dtype=known.dtype, device=known.device)
        known = torch.cat([known, labels.repeat_interleave(shots, dim=0)], dim=1)
        asked = torch.cat([asked, torch.full_like(asked[:, :ways], 1 / ways)], dim=1)
        nodes = torch.cat([asked.unsqueeze(1), known.expand(len(asked), *known.shape)], dim=1)
        for edges, update in zip(self.edges, self.updates, strict=True):
            moved = update(_gather(edges(nodes), nodes))
            nodes = torch.cat([nodes, F.leaky_relu(moved)], dim=2)
        logits: Tensor = self.last(_gather(self.last_edges(nodes), nodes))[:, 0]
        return logits


class _Edges(nn.Module):
    """A symmetric network of |x_i − x_j|, normalized over the other nodes j."""

    def __init__(self, size: int, hidden: int, running_statistics: bool) -> None:
        super().__init__()
        widths = [size, 2 * hidden, 2 * hidden, hidden, hidden]
        self.layers = nn.ModuleList(
            _NormedLinear(before, after, running_statistics)
            for before, after in itertools.pairwise(widths)
        )
        self.output = nn.Linear(hidden, 1)

    def forward(self, nodes: Tensor) -> Tensor:
        """Return A of shape (graphs, nodes, nodes), rows summing to 1."""
        hidden = (nodes.unsqueeze(2) - nodes.unsqueeze(1)).abs()
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden))
        scores: Tensor = self.output(hidden).squeeze(3)
        itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        return scores.masked_fill(itself, float("-inf")).softmax(dim=2)


class _NormedLinear(nn.Module):
    """Linear layer and BatchNorm over the last dimension, all others being the batch."""

    def __init__(self, before: int, after: int, running_statistics: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after, track_running_stats=running_statistics)

    def forward(self, values: Tensor) -> Tensor:
        mapped: Tensor = self.linear(values)
        normed: Tensor = self.norm(mapped.flatten(0, -2))
        return normed.view_as(mapped)


def _gather(edges: Tensor, nodes: Tensor) -> Tensor:
    return torch.cat([nodes, edges @ nodes], dim=2)
