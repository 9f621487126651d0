"""Parameters that tasks share: the model's own, which no inner step moves."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.metaparameters import Shared


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    meta = Shared(model, ["0.*"])

    def loss(model, meta, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    return mt.BilevelProblem(model, meta, loss, loss)


def test_they_are_the_models_own_and_no_inner_parameters():
    problem = make()
    assert problem.meta.get_parameter("0.weight") is problem.model[0].weight
    assert problem.parameter_names == ["2.weight", "2.bias"]
    assert problem.meta_parameter_names == ["0.weight", "0.bias"]


def test_the_derivative_goes_through_every_inner_step():
    problem, inner = make(), mt.inner.SGD(lr=0.1)
    batch = (torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64))
    check = mt.check_hypergradient(problem, inner, Unrolled(3), [batch] * 3, batch)
    assert check.relative_error < 1e-6


def test_arguments():
    with pytest.raises(ConfigurationError, match=r"'5\.\*' matches no parameter"):
        Shared(nn.Linear(1, 1), ["5.*"])
    with pytest.raises(ConfigurationError, match="give a list"):
        Shared(nn.Linear(1, 1), "weight")
