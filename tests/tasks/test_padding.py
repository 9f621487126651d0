"""Padded tasks give the numbers of each task by itself."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import DataError, ShapeError, UnsupportedError
from metatoolkit.losses import cross_entropy, masked_cross_entropy
from metatoolkit.metaparameters import Initialization
from metatoolkit.tasks import pad_tasks

SGD = mt.inner.SGD(lr=0.1)


def task(shots, queries, ways=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def part(size):
        inputs = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        return inputs, torch.randint(ways, (size,), generator=generator)

    return part(shots), part(queries)


TASKS = [task(2, 5), task(6, 3, seed=1), task(4, 1, ways=2, seed=2)]


def problem(loss, *middle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()
    return mt.BilevelProblem(
        model, Initialization(model), loss, loss, initial=Initialization.values
    )


@pytest.mark.parametrize("batching", ["loop", "vmap", mt.TaskBatching("vmap", 2), "auto"])
@pytest.mark.parametrize("estimator", [mt.hypergradients.Unrolled, mt.hypergradients.FirstOrder])
def test_masks_give_the_numbers_of_the_tasks_as_they_are(batching, estimator):
    expected = mt.over_tasks(problem(cross_entropy), SGD, estimator(3), TASKS, "loop")
    padded = pad_tasks(TASKS)
    found = mt.over_tasks(problem(masked_cross_entropy), SGD, estimator(3), padded, batching)
    for name, gradient in expected.gradient.items():
        assert torch.allclose(found.gradient[name], gradient, rtol=0, atol=1e-12)
    losses = (result.details["task_losses"] for result in (found, expected))
    assert torch.allclose(*losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batching", ["loop", "vmap", mt.TaskBatching("vmap", 2)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("anil", {}),
        ("meta_sgd", {}),
        ("meta_sgd", {"per": "layer", "per_step": True}),
        ("reptile", {}),
    ],
)
def test_masks_give_the_numbers_of_the_tasks_to_algorithms(name, options, batching):
    def found(loss, tasks, way):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        made = mt.algorithms.build(name, model, loss, loss, lr=0.1, steps=3, **options)
        return mt.over_tasks(made.problem, made.inner, made.estimator, tasks, way).gradient

    expected = found(cross_entropy, TASKS, "loop")
    for key, gradient in found(masked_cross_entropy, pad_tasks(TASKS), batching).items():
        assert torch.allclose(gradient, expected[key], rtol=0, atol=1e-12)


def test_the_padding_is_marked():
    (inputs, labels, mask), (_, _, query_mask) = pad_tasks(TASKS)
    assert inputs.shape == (3, 6, 4) and labels.shape == mask.shape == (3, 6)
    assert mask.sum(1).tolist() == [2, 6, 4] and query_mask.sum(1).tolist() == [5, 3, 1]
    assert torch.equal(inputs[0, :2], TASKS[0][0][0]) and not inputs[0, 2:].any()


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([], DataError, "no tasks"),
        ([[1, 2]], DataError, r"task 0 is a list; a tuple \(support, query\)"),
        ([(torch.ones(2), (torch.ones(2),))], DataError, "support of task 0 is no tuple"),
        ([((torch.ones(2, 1), torch.ones(3)),) * 2], ShapeError, "support of task 0.*examples"),
        ([task(2, 0)], DataError, "query of task 0 is empty"),
        (
            [task(2, 2), ((torch.ones(2, 3), torch.ones(2)), task(2, 2)[1])],
            ShapeError,
            r"support of task 1 has tensors \(2, 3\) \(float32\)",
        ),
    ],
    ids=["none", "list", "tensor", "examples", "empty", "features"],
)
def test_what_cannot_be_padded(tasks, error, message):
    with pytest.raises(error, match=message):
        pad_tasks(tasks)


def test_statistics_of_the_batch_are_refused():
    padded = pad_tasks(TASKS)
    normed = problem(masked_cross_entropy, nn.BatchNorm1d(5))
    with pytest.raises(UnsupportedError, match=r"1 is a BatchNorm1d.*unpadded"):
        mt.over_tasks(normed, SGD, mt.hypergradients.Unrolled(1), padded)
    normed.model.eval()
    assert mt.over_tasks(normed, SGD, mt.hypergradients.Unrolled(1), padded).valid_loss.isfinite()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i, y, m: (i, y), DataError, "tuple of 2; inputs, labels and a mask"),
        (lambda i, y, m: (i, y, m.long()), ShapeError, "of torch.int64; a boolean one"),
        (lambda i, y, m: (i, y, m[:1]), ShapeError, r"\(1,\).*shape \(6,\)"),
    ],
    ids=["pair", "integers", "size"],
)
def test_masks_that_are_none(change, error, message):
    (inputs, labels, mask), _ = pad_tasks(TASKS)
    with pytest.raises(error, match=message):
        masked_cross_entropy(
            nn.Linear(4, 3).double(), nn.Identity(), change(inputs[1], labels[1], mask[1])
        )
