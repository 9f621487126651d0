"""PyTorch's second derivative of weight_norm is wrong, and warned of."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import (
    Unrolled,
)
from metatoolkit.stateless.graphs import watch_second_derivatives
from metatoolkit.testing import bank


def weight_norm_case(layer):
    torch.manual_seed(0)
    model = nn.Sequential(layer(nn.Linear(3, 2)), nn.Tanh(), nn.Linear(2, 1)).double()
    batch = (torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))

    def train_loss(model, meta, batch):
        return (F.mse_loss(model(batch[0]), batch[1], reduction="none") * meta.value).mean()

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([[1.0]] * 5), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [batch], batch)


@pytest.mark.parametrize("steps", [2, 3])
def test_weight_norm_is_told_to_be_differentiated_wrongly(steps):
    case = weight_norm_case(torch.nn.utils.parametrizations.weight_norm)
    with pytest.warns(UserWarning, match=r"weight_norm.*g \* v / v.norm"):
        case.call(Unrolled(steps))


class Normalized(nn.Module):
    """The way out: g · v / ‖v‖ written out."""

    def __init__(self, layer):
        super().__init__()
        self.g = nn.Parameter(layer.weight.detach().norm(dim=1, keepdim=True))
        self.v = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)


def test_weight_norm_written_out_is_right():
    case = weight_norm_case(Normalized)
    check = mt.check_hypergradient(
        case.problem, case.inner, Unrolled(2), case.batches(2), case.valid_batch
    )
    assert check.relative_error < 1e-7


def test_the_warning_of_weight_norm_names_each_once():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="weight_norm is wrong") as told:
        watch_second_derivatives(layer(x).sum(), list(layer.parameters()))
    assert len(told) == 1 and told[0].filename == __file__
