from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.networks.metric_heads import (
    METRIC_HEADS,
    GraphHead,
    MatchingHead,
    PrototypicalHead,
    RelationHead,
    build_metric_head,
    query_labels,
)

WAYS, SHOTS, QUERIES = 3, 2, 4
SHAPE = (5, 4, 4)


def episode(shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(images: int) -> torch.Tensor:
        return torch.randn(WAYS, images, *shape, generator=generator, dtype=torch.float64)

    return draw(SHOTS), draw(QUERIES)


def make(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if name == "graph":
        options = {"embedding": 6, "hidden": 8, **options}
    return build_metric_head(name, SHAPE, WAYS, **options).double()


def test_prototypical_logits_are_negative_squared_distances_to_class_means() -> None:
    support, query = episode()
    logits = PrototypicalHead()(support, query)
    for row in range(WAYS * QUERIES):
        for label in range(WAYS):
            mean = sum(support[label, shot] for shot in range(SHOTS)) / SHOTS
            distance = (query[row // QUERIES, row % QUERIES] - mean).norm()
            torch.testing.assert_close(logits[row, label], -(distance**2))


def test_matching_logits_are_logs_of_attention_summed_over_a_class() -> None:
    support, query = episode()
    head = MatchingHead(80, context=False, scale=3.0)
    probabilities = torch.zeros(WAYS * QUERIES, WAYS, dtype=torch.float64)
    for row in range(WAYS * QUERIES):
        asked = query[row // QUERIES, row % QUERIES].flatten()
        weights = torch.tensor(
            [
                float(torch.exp(3 * F.cosine_similarity(asked, support[c, s].flatten(), dim=0)))
                for c in range(WAYS)
                for s in range(SHOTS)
            ],
            dtype=torch.float64,
        )
        probabilities[row] = (weights / weights.sum()).view(WAYS, SHOTS).sum(1)
    torch.testing.assert_close(head(support, query).exp(), probabilities)


def test_the_context_of_matching_networks_agrees_with_a_bidirectional_lstm() -> None:
    support, query = episode()
    head = make("matching", steps=3, scale=2.0)
    lstm = nn.LSTM(80, 80, bidirectional=True).double()
    for suffix, cell in (("", head.forward_cell), ("_reverse", head.backward_cell)):
        for name, parameter in cell.named_parameters():
            getattr(lstm, f"{name}_l0{suffix}").data.copy_(parameter.data)
    examples = support.flatten(0, 1).flatten(1)
    ahead, back = lstm(examples)[0].split(80, dim=1)
    embedded = examples + ahead + back
    asked = query.flatten(0, 1).flatten(1)
    hidden, memory = asked, torch.zeros_like(asked)
    for _ in range(3):
        read = (hidden @ embedded.T).softmax(1) @ embedded
        hidden, memory = head.attending_cell(torch.cat([asked, read], 1), (hidden, memory))
        hidden = hidden + asked
    attention = (2 * F.cosine_similarity(hidden[:, None], embedded[None], dim=2)).softmax(1)
    expected = attention.view(-1, WAYS, SHOTS).sum(2)
    torch.testing.assert_close(head(support, query).exp(), expected)


def test_relation_head_of_the_published_size() -> None:
    with torch.device("meta"):
        head = RelationHead((512, 7, 7))
        assert head(torch.empty(5, 1, 512, 7, 7), torch.empty(5, 2, 512, 7, 7)).shape == (10, 5)
    assert sum(parameter.numel() for parameter in head.parameters()) == 7_085_073


def test_relation_head_compares_each_query_with_each_class_mean() -> None:
    support, query = episode()
    head = make("relation", running_statistics=True).eval()
    logits = head(support, query)
    for row in (0, 5, 11):
        for label in range(WAYS):
            pair = torch.cat([support[label].mean(0), query[row // QUERIES, row % QUERIES]])
            hidden = head.compare(pair.unsqueeze(0)).flatten(1)
            expected = head.linear2(head.linear1(hidden).relu())
            torch.testing.assert_close(logits[row, label], expected.squeeze())


def test_graph_head_on_one_graph_written_out() -> None:
    support, query = episode()
    head = make("graph", layers=1, running_statistics=True).eval()

    def normed(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
        return layer.linear(values) / (1 + 1e-5) ** 0.5

    def edges(network: nn.Module, nodes: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        rows = []
        for i, one in enumerate(nodes):
            scores = []
            for other in nodes[:i] + nodes[i + 1 :]:
                hidden = (one - other).abs()
                for layer in network.layers:
                    hidden = F.leaky_relu(normed(layer, hidden))
                scores.append(network.output(hidden).squeeze())
            row = list(torch.stack(scores).softmax(0))
            rows.append([*row[:i], torch.tensor(0.0), *row[i:]])
        return rows

    def gather(row: list[torch.Tensor], i: int, nodes: list[torch.Tensor]) -> torch.Tensor:
        mixed = sum(weight * node for weight, node in zip(row, nodes, strict=True))
        return torch.cat([nodes[i], mixed])

    logits = head(support, query)
    for row in (0, 7):
        asked = normed(head.embed, query[row // QUERIES, row % QUERIES].flatten())
        nodes = [torch.cat([asked, torch.full((WAYS,), 1 / WAYS).double()])]
        for label in range(WAYS):
            for shot in range(SHOTS):
                known = normed(head.embed, support[label, shot].flatten())
                nodes.append(torch.cat([known, torch.eye(WAYS)[label].double()]))
        weights = edges(head.edges[0], nodes)
        moved = [
            F.leaky_relu(normed(head.updates[0], gather(weights[i], i, nodes)))
            for i in range(len(nodes))
        ]
        nodes = [torch.cat(pair) for pair in zip(nodes, moved, strict=True)]
        expected = head.last(gather(edges(head.last_edges, nodes)[0], 0, nodes))
        torch.testing.assert_close(logits[row], expected)


# A graph network reads labels as one-hot codes, so that their order has a say.
@pytest.mark.parametrize("name", ["matching", "prototypical", "relation"])
def test_classes_in_another_order_give_the_same_logits_in_that_order(name: str) -> None:
    support, query = episode()
    head = make(name, **({"context": False} if name == "matching" else {}))
    order = [2, 0, 1]
    logits = head(support, query).view(WAYS, QUERIES, WAYS)
    moved = head(support[order], query[order]).view(WAYS, QUERIES, WAYS)
    torch.testing.assert_close(moved, logits[order][:, :, order])


@pytest.mark.parametrize("name", ["relation", "graph"])
def test_running_statistics_make_a_head_inductive(name: str) -> None:
    support, query = episode()
    published, inductive = make(name).eval(), make(name, running_statistics=True).eval()
    one = query[:, :1]
    alone = inductive(support, one)
    torch.testing.assert_close(alone, inductive(support, query)[::QUERIES])
    assert not torch.allclose(published(support, one), published(support, query)[::QUERIES])


@pytest.mark.parametrize("name", METRIC_HEADS)
def test_heads_can_be_differentiated_twice(name: str) -> None:
    support, query = episode()
    head = make(name)
    support.requires_grad_()
    labels = query_labels(WAYS, QUERIES)
    loss = F.cross_entropy(head(support, query), labels)
    leaves = [support, *head.parameters()]
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    size = sum(gradient.square().sum() for gradient in gradients)
    second = torch.autograd.grad(size, leaves, allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in second)
    assert float(second[0].norm()) > 0


@pytest.mark.parametrize("name", ["graph", "matching", "prototypical"])
def test_vectors_and_other_numbers_of_shots_and_queries(name: str) -> None:
    head = build_metric_head(name, (7,), 4)
    logits = head(torch.randn(4, 1, 7), torch.randn(4, 3, 7))
    assert logits.shape == (12, 4)


def test_loss_of_an_episode() -> None:
    support, query = episode()
    loss = mt.losses.episode_cross_entropy(PrototypicalHead(), nn.Identity(), (support, query))
    logits = PrototypicalHead()(support, query).view(WAYS, QUERIES, WAYS)
    parts = [-logits[c, q].log_softmax(0)[c] for c in range(WAYS) for q in range(QUERIES)]
    torch.testing.assert_close(loss, sum(parts) / len(parts))


def test_wrong_features_are_answered() -> None:
    support, query = episode()
    for name in METRIC_HEADS:
        with pytest.raises(ShapeError, match="with the same ways"):
            make(name)(support, query[:2])
    with pytest.raises(ShapeError, match="features have 40 values; this head takes 80"):
        make("matching")(support[..., :2], query[..., :2])
    with pytest.raises(ShapeError, match=r"have shape \(5, 4, 2\); this head takes \(5, 4, 4\)"):
        make("relation")(support[..., :2], query[..., :2])
    with pytest.raises(ShapeError, match="2 ways and features of 80 values; this head takes 3"):
        make("graph")(support[:2], query[:2])
    with pytest.raises(ShapeError, match="channels, height and width"):
        RelationHead((5,))
    with pytest.raises(ShapeError, match="3×3 are too small"):
        RelationHead((5, 3, 3))
    with pytest.raises(ConfigurationError, match="layers is 0"):
        GraphHead(4, 3, layers=0)
    with pytest.raises(DataError, match=r"Tensor; an episode \(support, query\)"):
        mt.losses.episode_cross_entropy(PrototypicalHead(), nn.Identity(), support)
    with pytest.raises(ShapeError, match=r"returned \(3, 2, 5, 4, 4\) for 3 ways"):
        mt.losses.episode_cross_entropy(lambda s, q: s, nn.Identity(), (support, query))
