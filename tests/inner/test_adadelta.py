"""Adadelta against torch.optim.Adadelta, autograd and finite differences, dead coordinates too."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import Adadelta
from tests.inner import reference

OPTIONS = [
    {"lr": 1.0, "eps": 1e-4},
    {"lr": 0.3, "rho": 0.6, "eps": 1e-2, "weight_decay": 0.3},
    {"lr": 0.01, "rho": 1.0, "eps": 1e-3},
    {"lr": 0.5, "eps": 1e-5, "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(Adadelta(**options), torch.optim.Adadelta, options)


def test_groups_equal_torch():
    options = {"lr": 1.0, "eps": 1e-4, "weight_decay": 0.1}
    special = [{"lr": 0.5, "rho": 0.5}, {"eps": 1e-2, "weight_decay": 0.0}]
    inner = Adadelta(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.Adadelta, options, special)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(Adadelta(**options), steps=3)


@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(dead):
    values = {"lr": 0.8, "rho": 0.7, "eps": 0.05, "decay": 0.2}

    def make(meta):
        return Adadelta(
            lr=meta["lr"],
            rho=lambda meta, step: meta["rho"],
            eps=meta["eps"],
            weight_decay=meta["decay"],
        )

    reference.assert_differences(make, values, dead=dead)


def test_dead_coordinates_are_finite_and_right():
    check = reference.loss_check(Adadelta(eps=1e-4), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


def test_without_eps_nothing_moves_and_the_derivative_is_zero():
    inner = Adadelta(eps=0.0)
    problem, batches = reference.make_problem(), reference.make_batches(3)
    meta = problem.meta_parameters()
    state = start = inner.init(problem)
    for batch in batches:
        state, _ = inner.step(problem, state, meta, batch, create_graph=True)
    for name, parameter in state.parameters.items():
        assert torch.equal(parameter, start.parameters[name])
    total = sum(p.sum() for p in state.parameters.values())
    (slope,) = torch.autograd.grad(total, [meta["log_penalty"]])
    assert slope.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rho", [1.1, -0.1])
def test_arguments_out_of_range(rho):
    with pytest.raises(ConfigurationError, match=f"rho is {rho}"):
        Adadelta(rho=rho)
    with pytest.raises(ConfigurationError, match=f"rho is {rho}"):
        Adadelta(groups=[{"params": ["head.*"], "rho": rho}])
