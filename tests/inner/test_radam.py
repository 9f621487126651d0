"""RAdam against torch.optim.RAdam, autograd and finite differences, before and after rectifying."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import RAdam
from tests.inner import reference

# With β₂ = 0.8 the variance is rectified from the seventh step on, with 0.5 never.
OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.05, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.3, "decoupled_weight_decay": True},
    {"lr": 0.01, "betas": (0.3, 0.5), "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(RAdam(**options), torch.optim.RAdam, options)


def test_groups_equal_torch():
    options = {"lr": 0.02, "weight_decay": 0.1}
    special = [
        {"decoupled_weight_decay": True, "betas": (0.7, 0.9)},
        {"weight_decay": 0.0, "eps": 1e-2, "maximize": True, "lr": 1e-3},
    ]
    inner = RAdam(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.RAdam, options, special)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(RAdam(**options), steps=8)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(decoupled, dead):
    values = {"lr": 0.05, "beta1": 0.8, "beta2": 0.8, "eps": 0.05, "decay": 0.2}

    def make(meta):
        return RAdam(
            lr=lambda meta, step: meta["lr"],
            betas=(meta["beta1"], meta["beta2"]),
            eps=meta["eps"],
            weight_decay=meta["decay"],
            decoupled_weight_decay=decoupled,
        )

    reference.assert_differences(make, values, steps=9, dead=dead)


def test_dead_coordinates_are_finite_and_right():
    check = reference.loss_check(RAdam(lr=0.02, betas=(0.8, 0.8)), steps=9, dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"beta2 is 1.0"):
        RAdam(betas=(0.9, 1.0))
    with pytest.raises(ConfigurationError, match="decoupled_weight_decay is 1"):
        RAdam(decoupled_weight_decay=1)


def test_what_is_left_out():
    reference.assert_defaults(RAdam, torch.optim.RAdam)


def test_a_gradient_of_zero_has_the_slope_of_a_linear_step():
    inner = RAdam(lr=0.1, betas=(0.5, 0.8), eps=0.5)
    reference.assert_rest(inner, -0.1)
    # At the seventh step, with ρ∞ = 9.
    left = 0.8**7
    length = 9 - 2 * 7 * left / (1 - left)
    factor = (length - 4) * (length - 2) * 9 / ((9 - 4) * (9 - 2) * length) * (1 - left)
    slope = 0.5 / (1 - 0.5**7)
    reference.assert_rest(inner, -0.1 * slope * factor**0.5 / 0.5, step=6)
