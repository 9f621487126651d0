"""Activations that are computed again during a backward pass see the tensors of that evaluation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import metatoolkit as mt
from metatoolkit.hypergradients import (
    GMRES,
    SOBA,
    FirstOrder,
    ForwardMode,
    Implicit,
    NormalEquationCG,
    OneStep,
    Unrolled,
)
from metatoolkit.testing import bank


class Net(nn.Module):
    """Two layers, the first of which is computed again in the backward pass where that is asked."""

    def __init__(self, again):
        super().__init__()
        self.again = again
        self.first, self.last = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()

    def part(self, inputs):
        return self.first(inputs).tanh() * self.last.weight.mean()

    def forward(self, inputs):
        if self.again:
            hidden = checkpoint(self.part, inputs, use_reentrant=False)
        else:
            hidden = self.part(inputs)
        return self.last(hidden)


def network(again, initial=False):
    def train_loss(model, meta, batch):
        losses = F.cross_entropy(model(batch[0] * meta.value.exp()), batch[1])
        return losses + sum(p.square().sum() for p in model.parameters()) / 10

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(again)
        batches = [
            (torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6,))) for _ in range(3)
        ]
    meta = bank.Value([0.1, -0.2, 0.3, 0.4])
    options = {}
    if initial:
        meta = nn.ParameterDict({"bias": torch.tensor([0.3, -0.1], dtype=torch.float64)})
        options = {"initial": lambda meta: {"last.bias": meta["bias"]}}

        def train_loss(model, meta, batch):
            return valid_loss(model, meta, batch)

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss, **options)
    return bank.ProblemInstance(
        problem, mt.inner.SGD(lr=0.2, momentum=0.5), batches[:2], batches[2]
    )


@pytest.mark.parametrize(
    ("estimator", "initial"),
    [
        (lambda: Unrolled(3), False),
        (lambda: ForwardMode(2, chunk=1), False),
        (lambda: OneStep(), False),
        (lambda: SOBA(0.5), False),
        (lambda: Implicit(GMRES(3)), False),
        (lambda: Implicit(NormalEquationCG(3), steps=2), False),
        (lambda: FirstOrder(2), True),
        (lambda: Unrolled(2), True),
    ],
    ids=range(8),
)
def test_the_same_with_and_without(estimator, initial):
    found = []
    for again in (True, False):
        case, one = network(again, initial), estimator()
        state = case.state
        with torch.no_grad():
            # What is live now is not what the passes are at.
            for parameter in case.problem.model.parameters():
                parameter.add_(1.0)
        case.call(one, state)
        found.append(case.call(one, state))
    for name, gradient in found[0].gradient.items():
        torch.testing.assert_close(gradient, found[1].gradient[name], rtol=1e-12, atol=1e-15)
        assert bool(gradient.any())
    torch.testing.assert_close(found[0].valid_loss, found[1].valid_loss, rtol=1e-14, atol=0)
