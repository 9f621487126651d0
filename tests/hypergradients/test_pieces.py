"""Piecewise functions in finite differences: the piece is that of the point."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import SAMA, FiniteDifference, GuidedEvoGrad, OneStep
from metatoolkit.hypergradients.pieces import Flags
from metatoolkit.testing import bank
from tests.hypergradients.held_losses import relative_error

FUNCTIONS = {
    "relu": F.relu,
    "relu, in place": lambda x: F.relu(x + 0.0, inplace=True),
    "relu method": lambda x: x.relu(),
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "leaky_relu, in place": lambda x: F.leaky_relu_(x + 0.0, 0.2),
    "prelu": lambda x: F.prelu(x, x.mean().abs().view(1)),
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.4),
    "hardswish": lambda x: F.hardswish(5 * x),
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "hardshrink": lambda x: F.hardshrink(x, 0.1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "abs": lambda x: abs(x),
    "clamp": lambda x: x.clamp(-0.1, 0.2),
    "clamp to a tensor": lambda x: torch.clamp(x, max=x.mean(1, keepdim=True)),
    "clamp, limits in the wrong order": lambda x: x.clamp(0.3, -0.3) + x * x,
    "clamp, limits that cross": lambda x: torch.clamp(x, x.flip(1), x.roll(1, 1)) + 0.1 * x,
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "leaky_relu, as it comes": lambda x: torch._C._nn.leaky_relu(x) * x,
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp, in place": lambda x: (x + 0.0).clamp_(max=0.1),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, 0.5 * x.flip(1)),
    "max of two": lambda x: torch.max(x, x.flip(1) / 2),
    "max over a dimension": lambda x: x.max(dim=1, keepdim=True).values * x,
    "min over a dimension": lambda x: x.min(1)[0].unsqueeze(1) * x,
    "max of all": lambda x: x.max() * x,
    "min of all": lambda x: x.min() * x,
    "min of two": lambda x: torch.min(x, x.flip(1) / 2),
    "sort": lambda x: x.sort(1, descending=True).values,
    "topk": lambda x: x.topk(3, dim=1).values,
    "round": lambda x: (4 * x).round() + x,
    "floor, in place": lambda x: (4 * x).floor_() + x,
    "sign": lambda x: x.sign() * x.exp(),
    "max_pool1d": lambda x: F.max_pool1d(x.unsqueeze(1), 2, 1).squeeze(1),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.unsqueeze(1), 4).squeeze(1),
    "max_pool2d": lambda x: F.max_pool2d(x.view(-1, 1, 4, 6), 2).flatten(1),
}


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.linspace(-0.3, 0.5, 6).double())


def case_of(function):
    """λ before the piecewise function, so that its steps are those of the gradient in λ."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 3), nn.Tanh()).double()

    def train_loss(model, meta, batch):
        hidden = function(model[0](batch[0] + meta.value))
        return F.cross_entropy(model[2](hidden @ model[1].weight[:, : hidden.shape[1]].T), batch[1])

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, Shift(), train_loss, valid_loss)
    case = bank.small_net()
    return dataclasses.replace(case, problem=problem, inner=mt.inner.SGD(lr=1.0))


def assert_keeps_its_piece(function):
    case = case_of(function)
    state = case.state
    exact = case.call(OneStep(), state)
    # A radius at which many entries change sides.
    for estimator, limit in ((FiniteDifference(), 1e-6), (FiniteDifference(0.02), 2e-2)):
        assert relative_error(case.call(estimator, state), exact) < limit
    exact = case.call(OneStep(False), state)
    assert relative_error(case.call(SAMA(), state), exact) < 1e-6
    guided = GuidedEvoGrad(1e-5, 5.0, rescale=1.0)
    assert relative_error(case.call(guided, state), exact) < 1e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keeps_its_piece(name):
    assert_keeps_its_piece(FUNCTIONS[name])


def test_many_flags_eight_to_a_byte():
    flags = torch.arange(3 * 7001).view(3, 7001) % 3 == 0
    packed = Flags.of(flags)
    assert packed.stored.numel() == 2626 and packed.stored.dtype == torch.uint8
    assert torch.equal(packed.unpack(), flags)


@pytest.mark.parametrize("count", [0, 3])
def test_few_flags(count):
    flags = torch.arange(count * 7).view(count, 7) % 3 == 0
    assert torch.equal(Flags.of(flags).unpack(), flags)
