"""ProtoNet is the query loss against class means, as plain PyTorch and learn2learn have it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError, UnsupportedError
from metatoolkit.losses import cross_entropy, masked_cross_entropy
from tests.training.across_tasks import largest_difference

WAYS, SIZE = 4, 3


def network(*middle):
    torch.manual_seed(0)
    layers = [nn.Linear(SIZE, 6), *middle, nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, WAYS)]
    return nn.Sequential(*layers).double()


def build(model, loss=cross_entropy):
    return mt.algorithms.build("protonet", model, loss, loss, lr=0.3, steps=4)


def task(shots, queries=(2, 1, 3), seed=0):
    """A task whose classes have these shots and, as far as they have any, queries."""
    generator = torch.Generator().manual_seed(seed)

    def examples(counts):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        inputs = torch.randn(len(labels), SIZE, generator=generator, dtype=torch.float64)
        return inputs + labels[:, None], labels

    return examples(shots), examples(queries)


ALIKE = [task((2, 1, 2, 3), (1, 2, 2, 1), seed) for seed in range(4)]
# Shots of the classes differ, and so do the numbers of examples and of classes.
UNEQUAL = [task((2, 1, 3)), task((1, 1, 1, 1), seed=1), task((4, 2, 1), (1, 2), seed=2), ALIKE[0]]


def by_hand(model, tasks):
    """The query losses against class means of the embedded support, and their mean gradient."""
    body, losses = model[:-1], []
    for (inputs, labels), (asked, answers) in tasks:
        features, queries = body(inputs), body(asked)
        means = [features[labels == c].mean(0) for c in range(int(labels.max()) + 1)]
        distances = torch.stack([(queries - mean).norm(dim=1) ** 2 for mean in means], dim=1)
        losses.append(F.cross_entropy(-distances, answers))
    names = [name for name, _ in body.named_parameters()]
    mean = torch.stack(losses).mean()
    gradients = torch.autograd.grad(mean, list(body.parameters()))
    found = {f"shared.{name}": g for name, g in zip(names, gradients, strict=True)}
    return torch.stack(losses).detach(), found


@pytest.mark.parametrize("middle", [(), (nn.BatchNorm1d(6),)], ids=["plain", "batchnorm"])
@pytest.mark.parametrize(
    ("tasks", "batching"),
    [
        (ALIKE, "vmap"),
        (ALIKE, "loop"),
        (ALIKE, mt.TaskBatching("vmap", chunk=3)),
        (UNEQUAL, "loop"),
        (UNEQUAL, "auto"),
    ],
    ids=["vmap", "loop", "chunks", "unequal", "unequal-auto"],
)
def test_the_gradient_is_that_of_the_query_loss_against_class_means(tasks, batching, middle):
    losses, expected = by_hand(network(*middle), tasks)
    assert min(float(part.abs().max()) for part in expected.values() if part.dim() > 1) > 1e-3
    algorithm = build(network(*middle))
    found = mt.over_tasks(algorithm.problem, algorithm.inner, algorithm.estimator, tasks, batching)
    assert largest_difference(found.gradient, expected) < 1e-12
    torch.testing.assert_close(found.details["task_losses"], losses, rtol=1e-12, atol=0)


def test_padding_of_unequal_tasks_changes_nothing():
    losses, expected = by_hand(network(), UNEQUAL)
    algorithm = build(network(), masked_cross_entropy)
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    padded = mt.tasks.pad_tasks(UNEQUAL)
    found = mt.over_tasks(*parts, padded, "vmap")
    assert largest_difference(found.gradient, expected) < 1e-12
    torch.testing.assert_close(found.details["task_losses"], losses, rtol=1e-12, atol=0)
    scores = mt.TaskScores(algorithm.problem, algorithm.inner, steps=1, batching="vmap")(padded)
    torch.testing.assert_close(scores, losses, rtol=1e-12, atol=0)


def test_logits_are_those_of_learn2learn():
    prototypical = pytest.importorskip("learn2learn").nn.PrototypicalClassifier()
    (inputs, labels), (asked, _) = ALIKE[1]
    model = network()
    with torch.no_grad():
        prototypical.fit_(model[:-1](inputs), labels)
        expected = prototypical(model[:-1](asked))
    problem, inner = (algorithm := build(model)).problem, algorithm.inner
    state, meta = inner.init(problem), problem.meta_parameters()
    # The class means are where the step leads, from wherever it starts, and where it stays.
    for _ in range(2):
        state, _ = inner.step(problem, state, meta, (inputs, labels))
        problem.load(state)
        torch.testing.assert_close(model(asked).detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_meta_step_costs_six_forward_passes():
    (inputs, labels), query = task((2, 2, 2, 2), (2, 2, 2, 2))
    algorithm = build(network())
    body = algorithm.problem.model[:-1]
    forward = mt.diagnostics.measure.count_flops(lambda: body(inputs))
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    taken = mt.diagnostics.measure.count_flops(
        lambda: mt.over_tasks(*parts, [((inputs, labels), query)], "loop")
    )
    # The first layer has no gradient in its inputs.
    first = 2 * len(inputs) * SIZE * 6
    assert taken == 6 * forward - 2 * first


def test_what_has_no_class_means_is_refused():
    with pytest.raises(ConfigurationError, match="'', is a Linear after 0 parameters"):
        build(nn.Linear(SIZE, WAYS))
    with pytest.raises(ConfigurationError, match="'1', is a BatchNorm1d"):
        build(nn.Sequential(nn.Linear(SIZE, WAYS), nn.BatchNorm1d(WAYS)))
    algorithm = build(network())
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    (inputs, labels), query = ALIKE[0]
    with pytest.raises(DataError, match="int64"):
        mt.over_tasks(*parts, [((inputs, labels.double()), query)])
    with pytest.raises(NonFiniteError, match="task 0 of the batch"):
        mt.over_tasks(*parts, [((inputs[labels > 0], labels[labels > 0]), query)], "loop")
    normed = build(network(nn.BatchNorm1d(6)), masked_cross_entropy)
    parts = (normed.problem, normed.inner, normed.estimator)
    with pytest.raises(UnsupportedError, match="padding"):
        mt.over_tasks(*parts, mt.tasks.pad_tasks(UNEQUAL), "loop")
