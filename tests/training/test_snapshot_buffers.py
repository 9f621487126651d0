"""Buffers in checkpoints: those that grow, and those that are not stored."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


class Queue(nn.Module):
    """Remembers the inputs it saw, as a memory bank does: its buffer grows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(0, 6))

    def forward(self, inputs):
        pull = self.seen.mean(0) if len(self.seen) else 0.0
        if self.training:
            self.seen = torch.cat([self.seen, inputs.detach()])[-25:]
        return self.linear(inputs - pull)


class Memory(nn.Module):
    """λ with a memory of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("losses", torch.zeros(0))

    def forward(self, losses):
        self.losses = torch.cat([self.losses, losses.detach()])[-25:]
        return (losses * self.scale).mean() / self.losses.mean()


def growing():
    def train_loss(model, meta, batch):
        return meta(F.cross_entropy(model(batch[0]), batch[1], reduction="none"))

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, meta = Queue().double(), Memory().double()
    case = bank.small_net()
    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss, "eval")
    return dataclasses.replace(case, problem=problem, inner=mt.inner.SGD(lr=0.1))


def test_buffers_that_grow_end_in_the_modules(tmp_path):
    case = growing()
    fit(trainer_of(case, None), case, 4)
    model, batches = growing().problem.model, [*case.train_batches, case.train_batches[0]]
    meta = growing().problem.meta
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in batches:
        optimizer.zero_grad()
        meta(F.cross_entropy(model(inputs), targets, reduction="none")).backward()
        optimizer.step()
    assert case.problem.model.seen.shape == (25, 6) and case.problem.meta.losses.shape == (25,)
    torch.testing.assert_close(case.problem.model.state_dict(), model.state_dict())
    torch.testing.assert_close(case.problem.meta.losses, meta.losses)


@pytest.mark.parametrize("estimator", [Unrolled(1), EvoGrad(2, 0.1, 0.5)])
def test_buffers_that_grow_resume_bitwise(tmp_path, estimator):
    def train(path, steps, resume):
        case = growing()
        fit(trainer_of(case, estimator), case, steps, checkpoint=path, resume=resume)
        return tensors_of(case.problem)

    whole = train(tmp_path / "a.pt", 5, False)
    train(tmp_path / "b.pt", 1, False)
    assert same(whole, train(tmp_path / "b.pt", 5, True))


def test_buffers_that_are_not_stored_stay(tmp_path):
    def assembled(fill):
        case = bank.small_net()
        case.problem.meta.register_buffer("fill", torch.full((2,), fill), persistent=False)
        given = case.problem.train_loss, case.problem.valid_loss
        problem = mt.BilevelProblem(case.problem.model, case.problem.meta, *given)
        return dataclasses.replace(case, problem=problem)

    case = assembled(1.0)
    fit(trainer_of(case), case, 2, checkpoint=tmp_path / "c.pt")
    other = assembled(3.0)
    trainer_of(other).load_checkpoint(tmp_path / "c.pt")
    assert other.problem.meta.fill.tolist() == [3.0, 3.0]
