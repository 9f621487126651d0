"""Problems whose modules are run again in a backward pass."""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
)

import metatoolkit as mt
from metatoolkit.testing import bank


class Sine(nn.Module):
    """sin(w · x), computed by ``run``."""

    def __init__(self, run):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.run = run

    def forward(self, x):
        return self.run(lambda x: torch.sin(self.w * x), x)


def sine_problem(run):
    return mt.BilevelProblem(
        Sine(run),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model(batch),
        lambda model, meta, batch: model(batch) ** 2,
    )


plainly = functools.partial(checkpoint, use_reentrant=False)


class Net(nn.Module):
    """Blocks with BatchNorm, dropout and a buffer that each pass moves, checkpointed or not."""

    def __init__(self, run):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3))
            for _ in range(2)
        )
        self.norm = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.last = nn.Linear(4, 1)
        self.run = run

    def forward(self, x):
        for block in [*self.blocks, self.norm]:
            x = self.run(block, x)
        return self.last(x)


def net_case(run):
    torch.manual_seed(3)
    model = Net(run).double()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randn(8, 1, generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]

    def train_loss(model, meta, batch):
        return F.mse_loss(model(batch[0] * meta.value), batch[1])

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([1.0] * 4), train_loss, valid_loss)
    return bank.ProblemInstance(
        problem, mt.inner.SGD(lr=0.1, momentum=0.5), batches[:2], batches[2]
    )


RUNS = {
    "as it is": lambda function, x: function(x),
    "checkpointed": plainly,
    "checkpoint in a checkpoint": lambda function, x: plainly(lambda x: plainly(function, x), x),
    "in sequence": lambda function, x: checkpoint_sequential(
        nn.Sequential(nn.Identity(), _Called(function)), 2, x, use_reentrant=False
    ),
}


class _Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
