"""Modules whose passes drift, or are rewound, and the problem that they stand in."""

import collections
import dataclasses
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import (
    EvoGrad,
)
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS

ALL = ESTIMATORS | {"EvoGrad, graphs kept": lambda: EvoGrad(2, 0.1, 0.5, streamed=False)}
estimators = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
F64 = torch.float64


class Net(nn.Module):
    """A network with one place where something may happen to its hidden units."""

    def __init__(self, between=None):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.between = between or nn.Identity()

    def forward(self, inputs):
        return self.last(self.between(torch.tanh(self.first(inputs))))


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, hidden):
        return hidden * (torch.rand(5, generator=self.generator, dtype=F64) < 0.7)


class OwnNumpyGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, hidden):
        return hidden * float(self.rng.normal(1, 0.2))


class OwnPythonGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = random.Random(0)

    def forward(self, hidden):
        return hidden + self.rng.gauss(0, 0.2)


class HiddenState(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.zeros(5, dtype=F64)

    def forward(self, inputs):
        hidden = inputs + 0.5 * self.hidden
        self.hidden = hidden.detach().mean(0)
        return hidden


class AttachedState(HiddenState):
    def forward(self, inputs):
        hidden = inputs + 0.5 * self.hidden
        self.hidden = hidden.mean(0)
        return hidden


class MovingAverage(nn.Module):
    """Begins with the first batch, so that a second look at that batch moves nothing."""

    def __init__(self):
        super().__init__()
        self.average = None

    def forward(self, hidden):
        mean = hidden.detach().mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        return hidden - self.average


class InPlaceAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.average = torch.zeros(5, dtype=F64)

    def forward(self, hidden):
        self.average.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        return hidden - self.average


class Memory(nn.Module):
    """Keeps what it saw in a deque that grows."""

    def __init__(self):
        super().__init__()
        self.seen = collections.deque(maxlen=8)

    def forward(self, hidden):
        self.seen.append(hidden.detach().mean(0))
        return hidden + 0.1 * torch.stack(list(self.seen)).sum(0)


class Warmup(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, hidden):
        self.calls += 1
        return hidden * (1 - 0.5**self.calls)


class Average(nn.Module):
    """The same as a buffer: it is rewound."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(5))

    def forward(self, hidden):
        self.average = 0.9 * self.average + 0.1 * hidden.detach().mean(0)
        return hidden - self.average


class Python(nn.Module):
    def forward(self, hidden):
        return hidden * random.uniform(0.5, 1.5) + random.gauss(0, 0.1)


class Numpy(nn.Module):
    def forward(self, hidden):
        rows = np.random.permutation(len(hidden))[:6]
        return hidden * float(np.random.normal(1, 0.3)) + hidden[rows].mean(0)


class Logged(nn.Module):
    """Keeps what it saw and counts, to no effect."""

    def __init__(self):
        super().__init__()
        self.last, self.calls = None, 0

    def forward(self, hidden):
        self.last = hidden.detach()
        self.calls += 1
        return hidden


DRIFTING = {
    "OwnGenerator": "between.generator (a random generator",
    "OwnNumpyGenerator": "between.rng (a random generator",
    "OwnPythonGenerator": "between.rng (a random generator",
    "HiddenState": "between.hidden (a tensor that is no buffer)",
    "MovingAverage": "between.average (a tensor that is no buffer)",
    "InPlaceAverage": "between.average (a tensor that is no buffer)",
    "Memory": "between.seen (a deque)",
    "Warmup": "between.calls (a number)",
}
REWOUND = [Average, Python, Numpy, Logged]
ALIKE = ("OwnPythonGenerator", "InPlaceAverage")


def penalized(model, meta, batch):
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    penalty = meta.log_penalty.exp() * model.first.weight.square().sum()
    return (meta(losses) * losses).mean() + penalty


def cross_entropy(model, meta, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def build(between=None, train_loss=penalized, valid_loss=cross_entropy, initial=False):
    """Return a case whose model has ``between``; the outer loss sees the same model."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, meta = Net(between).double(), bank.Weights().double()
    options = {}
    if initial:
        meta, train_loss = mt.metaparameters.Initialization(model), cross_entropy
        options["initial"] = mt.metaparameters.Initialization.values
    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss, **options)
    small = bank.small_net()
    return dataclasses.replace(small, problem=problem, inner=mt.inner.SGD(lr=0.2))
