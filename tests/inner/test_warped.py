"""Warped steps are those that warp layers make; derivatives in the factors."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError, UnsupportedError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.inner import SGD, Warped
from metatoolkit.metaparameters import insert_warp_layers
from tests.training.across_tasks import sinusoids, squared_error

F64 = torch.float64


class Factors(nn.Module):
    """One Ω for the outputs of the first layer."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(3)
        self.omega = nn.Parameter(torch.randn(size, size, dtype=F64) / 2)


def factors(meta):
    return {"0.weight": meta.omega, "0.bias": meta.omega}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def test_steps_are_those_of_the_network_with_a_warp_layer():
    (inputs, targets), _ = sinusoids(1)
    batch = inputs[0], targets[0]
    warped, plain, meta = network(), network(), Factors(5)
    warp = insert_warp_layers(warped, bias=False)
    with torch.no_grad():
        warp.layers()["0"].weight.copy_(meta.omega)
        plain[0].weight.copy_(meta.omega @ warped[0].weight)
        plain[0].bias.copy_(meta.omega @ warped[0].bias)
    inner = SGD(lr=0.02, momentum=0.9)
    finals = []
    for model, own, learner in ((warped, warp, inner), (plain, meta, Warped(inner, factors))):
        problem = mt.BilevelProblem(model, own, squared_error, squared_error)
        state = learner.init(problem)
        for _ in range(4):
            state, _ = learner.step(problem, state, problem.meta_parameters(), batch)
        problem.load(state)
        finals.append(model)
    expected = (meta.omega @ warped[0].weight).detach()
    torch.testing.assert_close(plain[0].weight.detach(), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(*(model(inputs[0]) for model in finals), rtol=1e-12, atol=1e-13)


def test_the_derivative_in_the_factors():
    (inputs, targets), (query, wanted) = sinusoids(1)
    problem = mt.BilevelProblem(network(), Factors(5), squared_error, squared_error)
    arguments = (Unrolled(3), [(inputs[0], targets[0])] * 3, (query[0], wanted[0]))
    check = mt.check_hypergradient(
        problem, Warped(SGD(lr=0.05, momentum=0.5), factors), *arguments, coordinates=6
    )
    assert check.verdict == "agrees"


def test_what_is_refused():
    def init(function, model=None):
        model = network() if model is None else model
        problem = mt.BilevelProblem(model, Factors(5), squared_error, squared_error)
        return Warped(SGD(lr=0.1), function).init(problem)

    with pytest.raises(ConfigurationError, match="factors is 3"):
        Warped(SGD(lr=0.1), 3)
    with pytest.raises(ConfigurationError, match="returned a Parameter"):
        init(lambda meta: meta.omega)
    with pytest.raises(UnknownNameError, match=r"'0\.wait'"):
        init(lambda meta: {"0.wait": meta.omega})
    with pytest.raises(ShapeError, match=r"'2\.bias' has shape \(5, 5\), and the parameter \(1,\)"):
        init(lambda meta: {"2.bias": meta.omega})
    problem = mt.BilevelProblem(network(), Factors(5), squared_error, squared_error)
    with pytest.raises(UnsupportedError, match="Warped does not say how each coordinate"):
        mt.over_tasks(problem, Warped(SGD(lr=0.1), factors), Unrolled(1), sinusoids(), "vmap")
