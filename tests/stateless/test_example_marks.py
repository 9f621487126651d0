"""Losses that leave examples out or weigh them, in batches that are taken in pieces."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import FirstOrder, OneStep
from metatoolkit.training.across_tasks import AcrossTasks
from tests.stateless.test_micro_batched import EXAMPLES, SGD, batch, problem


def masked(model, meta, batch):
    losses = (model(batch["inputs"] * meta.scale) - batch["targets"]).square().mean(-1)
    return (losses * batch["mask"]).sum() / batch["mask"].sum()


def masked_by_a_constant(model, meta, batch):
    losses = (model(batch["inputs"] * meta.scale) - batch["targets"]).square().mean(-1)
    return (losses * batch["mask"]).mean() / batch["share"]


def ignoring(model, meta, batch):
    outputs = torch.cat([model(batch["inputs"] * meta.scale), batch["targets"]], 1)
    return nn.functional.cross_entropy(outputs, batch["labels"], ignore_index=-1)


LEFT_OUT = {
    "a mask of numbers": (masked, "mask", (torch.arange(EXAMPLES) != 3).double()),
    "a mask of integers": (masked, "mask", (torch.arange(EXAMPLES) != 3).long()),
    "labels": (ignoring, "labels", torch.tensor([0, 1, 0, -1, 1, 0, 1][:EXAMPLES])),
}


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_leaves_examples_out_is_found_when_some_are_left_out(name, first):
    loss, key, marks = LEFT_OUT[name]
    given = problem(2, train=loss)
    state, meta = SGD.init(given), given.meta_parameters()
    if first:
        whole = torch.ones_like(marks) if key == "mask" else marks.abs()
        SGD.step(given, state, meta, batch() | {key: whole})
    with pytest.raises(UnsupportedError, match="train_loss is no mean over the examples"):
        SGD.step(given, state, meta, batch() | {key: marks})


def test_a_compiled_call_sees_a_mask_of_another_kind():
    given = problem({"train_loss": 2}, train=masked)
    estimator, state = OneStep(), SGD.init(given)
    estimator.compile = "graph"
    whole = batch() | {"mask": torch.ones(EXAMPLES)}
    for _ in range(4):
        estimator(given, SGD, state, [whole], batch())
    assert len(estimator._compiler.programs) == 1
    part = whole | {"mask": (torch.arange(EXAMPLES) != 3).float()}
    with pytest.raises(UnsupportedError, match="train_loss is no mean over the examples"):
        estimator(given, SGD, state, [part], batch())


def test_a_mask_over_a_number_of_the_batch_is_a_mean():
    marks = torch.arange(EXAMPLES) != 3
    share = marks.double().mean()
    given = batch() | {"mask": marks, "share": share}
    found, expected = (
        SGD.step(p, SGD.init(p), p.meta_parameters(), given)[1]
        for p in (problem(2, train=masked_by_a_constant), problem(None, train=masked))
    )
    torch.testing.assert_close(found, expected)


def masked_by_numbers(model, meta, batch):
    inputs, labels, mask = batch
    return (mt.losses.sample_losses(model, (inputs, labels)) * mask).sum() / mask.sum()


@pytest.mark.parametrize("way", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("short", range(4))
def test_padded_tasks_are_found_wherever_the_short_one_is(way, short):
    """Where the mask is made of numbers, which may as well be weights."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    meta = mt.metaparameters.Initialization(model)
    loss = masked_by_numbers
    given = mt.BilevelProblem(model, meta, loss, loss, initial=type(meta).values, micro_batch=2)

    def part(count):
        return torch.randn(count, 3).double(), torch.randint(2, (count,))

    pairs = [(part(3 if number == short else 5), part(4)) for number in range(4)]
    padded = mt.tasks.pad_tasks(pairs)
    tasks = tuple((inputs, labels, mask.double()) for inputs, labels, mask in padded)
    with pytest.raises(UnsupportedError, match="no mean over the examples"):
        mt.over_tasks(given, SGD, FirstOrder(1), tasks, way)


def test_a_last_layer_of_zeros_hides_no_weights():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    meta = mt.metaparameters.LearningRates(model, 0.1)
    loss = masked_by_numbers
    given = mt.BilevelProblem(model, meta, loss, mt.losses.cross_entropy, micro_batch=2)
    part = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1]), torch.ones(5).double()
    part[2][3] = 0.25
    with pytest.raises(UnsupportedError, match="no mean over the examples"):
        SGD.step(given, SGD.init(given), given.meta_parameters(), part)


def test_tasks_that_were_not_looked_at_run_one_by_one_once():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    meta = mt.metaparameters.Initialization(model)

    def weighted(model, meta, batch):
        inputs, targets, weights = batch
        return ((model(inputs) - targets).square().mean(-1) * weights).mean()

    given = mt.BilevelProblem(
        model, meta, weighted, weighted, initial=type(meta).values, micro_batch=2
    )

    def parts():
        shapes = ((4, 5, 3), (4, 5, 1))
        weights = torch.ones(4, 5).double()
        weights[3, 2] = 0.5
        return (*(torch.randn(shape).double() for shape in shapes), weights)

    tasks = parts(), parts()
    estimator, across = FirstOrder(1), mt.TaskBatching("vmap")
    trainer = AcrossTasks(given, SGD, estimator, across)
    results = [trainer(tasks, SGD.init(given)) for _ in range(2)]
    assert [result.details["batching"] for result in results] == ["loop", "vmap"]
    torch.testing.assert_close(results[0].gradient, results[1].gradient)
