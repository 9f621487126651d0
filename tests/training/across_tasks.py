"""Sinusoid tasks, and problems whose initial state is learned over them."""

import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.metaparameters import Initialization

TASKS, SHOTS, QUERIES = 4, 5, 7


def squared_error(model, meta, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def sinusoids(tasks=TASKS, shots=SHOTS, queries=QUERIES, seed=0):
    """Support and query of sinusoids of random amplitude and phase, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, tasks, 1, 1, generator=generator, dtype=torch.float64)
    inputs = torch.rand(tasks, shots + queries, 1, generator=generator, dtype=torch.float64)
    inputs = 10 * inputs - 5
    targets = (0.1 + 4.9 * draw[0]) * torch.sin(inputs + 3 * draw[1])
    support = inputs[:, :shots], targets[:, :shots]
    return support, (inputs[:, shots:], targets[:, shots:])


def listed(batch):
    (inputs, targets), (query_inputs, query_targets) = batch
    parts = zip(inputs, targets, query_inputs, query_targets, strict=True)
    return [((a, b), (c, d)) for a, b, c, d in parts]


def regression(*middle, loss=squared_error):
    """A small network in float64, the initial values of which are λ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), *middle, nn.Tanh(), nn.Linear(8, 1)).double()
    meta = Initialization(model)
    return mt.BilevelProblem(model, meta, loss, loss, initial=Initialization.values)


def largest_difference(one, other):
    """The largest difference of two gradients by name."""
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)
