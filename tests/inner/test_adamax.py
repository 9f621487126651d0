"""Adamax against torch.optim.Adamax, autograd and finite differences, dead coordinates too."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import Adamax
from tests.inner import reference

OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-2, "weight_decay": 0.3},
    {"lr": 0.005, "betas": (0.0, 0.0), "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(Adamax(**options), torch.optim.Adamax, options)


def test_groups_equal_torch():
    options = {"lr": 0.02, "weight_decay": 0.1}
    special = [{"lr": 0.05, "betas": (0.7, 0.8)}, {"eps": 0.1, "weight_decay": 0.0}]
    inner = Adamax(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.Adamax, options, special)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    # An eps that leaves m / u its slope where the betas are 0, so that u is the gradient's size.
    reference.assert_sensitivity(Adamax(**options | {"eps": 0.05}), steps=4)


@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(dead):
    values = {"lr": 0.05, "beta1": 0.7, "beta2": 0.8, "eps": 0.05, "decay": 0.2}

    def make(meta):
        return Adamax(
            lr=lambda meta, step: meta["lr"],
            betas=(meta["beta1"], meta["beta2"]),
            eps=meta["eps"],
            weight_decay=meta["decay"],
        )

    reference.assert_differences(make, values, dead=dead)


def test_dead_coordinates_are_finite_and_right():
    check = reference.loss_check(Adamax(lr=0.02, betas=(0.8, 0.8)), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


def test_a_gradient_of_zero_has_the_derivative_of_the_momentum():
    # m = 0.1 g, u = |g| + 0.5 and 1 − β₁ = 0.1: θ = −lr g / (|g| + 0.5), dθ/dg = −0.2 / 0.5 at 0.
    gradient, _ = reference.resting(Adamax(lr=0.2, eps=0.5))
    assert gradient == pytest.approx(0.4, rel=1e-12)


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"beta2 is 1.0"):
        Adamax(betas=(0.9, 1.0))
    with pytest.raises(ConfigurationError, match=r"eps is -1"):
        Adamax(eps=-1)
