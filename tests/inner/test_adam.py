"""Adam and AdamW against torch.optim, autograd and finite differences, dead coordinates too."""

import math

import pytest
import torch

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.inner import Adam, AdamW
from tests.inner import reference

KINDS = [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]
OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.02, "betas": (0.0, 0.0), "weight_decay": 0.1},
    {"lr": 0.05, "betas": (0.5, 0.6), "amsgrad": True, "weight_decay": 0.1},
    {"lr": 0.002, "maximize": True, "amsgrad": True},
]


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(ours, theirs, options):
    reference.assert_follows(ours(**options), theirs, options)


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_groups_equal_torch(ours, theirs):
    options = {"lr": 0.02, "weight_decay": 0.1}
    for special in (
        [{"lr": 0.05, "betas": (0.7, 0.95)}, {"weight_decay": 0.0, "eps": 1e-2}],
        [{"amsgrad": True, "betas": (0.5, 0.5)}, {"maximize": True, "lr": 0.001}],
    ):
        inner = ours(**options, groups=reference.groups_of(special))
        reference.assert_follows(inner, theirs, options, special)
        reference.assert_sensitivity(inner)


@pytest.mark.parametrize("ours", [Adam, AdamW])
def test_the_largest_second_moment_is_differentiated(ours):
    # With β₂ = 0.1 the largest moment is an earlier one at most coordinates and steps.
    values = {"lr": 0.05, "beta1": 0.8, "beta2": 0.1, "eps": 0.01, "decay": 0.2}

    def make(meta):
        betas = (meta["beta1"], meta["beta2"])
        return ours(meta["lr"], betas, meta["eps"], meta["decay"], amsgrad=True)

    reference.assert_differences(make, values)
    check = reference.loss_check(ours(lr=0.02, betas=(0.5, 0.1), amsgrad=True))
    assert check.relative_error < 1e-6, check


@pytest.mark.parametrize("ours", [Adam, AdamW])
@pytest.mark.parametrize("options", OPTIONS[:2] + OPTIONS[3:])
def test_gradient_sensitivity(ours, options):
    reference.assert_sensitivity(ours(**options))


@pytest.mark.parametrize("ours", [Adam, AdamW])
@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(ours, dead):
    values = {"lr": 0.05, "beta1": 0.8, "logit": 2.0, "eps": 0.01, "decay": 0.2}

    def make(meta):
        return ours(
            lr=lambda meta, step: meta["lr"] / (1 + step),
            betas=(meta["beta1"], lambda meta, step: torch.sigmoid(meta["logit"])),
            eps=meta["eps"],
            weight_decay=meta["decay"],
        )

    reference.assert_differences(make, values, dead=dead)


@pytest.mark.parametrize("ours", [Adam, AdamW])
def test_dead_coordinates_are_finite_and_right(ours):
    # The weights behind a feature that is always zero have a gradient of exactly zero.
    check = reference.loss_check(ours(lr=0.02), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert math.isfinite(float(check.estimate.norm())) and float(check.estimate.norm()) > 1e-4


@pytest.mark.parametrize("ours", [Adam, AdamW])
@pytest.mark.parametrize("steps", [1, 3])
def test_derivative_where_the_gradient_is_zero_at_this_meta_parameter(ours, steps):
    # After one step θ₂ = lr · λ / (|λ| + eps): its slope at λ = 0 is lr / eps.
    gradient, objective = reference.resting(ours(lr=0.1, eps=0.5), steps=steps)
    shift = 1e-6
    assert gradient == pytest.approx((objective(shift) - objective(-shift)) / (2 * shift), rel=1e-4)
    if steps == 1:
        assert gradient == pytest.approx(0.1 / 0.5, rel=1e-12)


def test_an_underflown_second_moment_is_finite():
    value = torch.tensor([1e-30, 0.0], requires_grad=True)
    inner = Adam(lr=0.1)
    slots = {name: torch.zeros(2) for name in ("first_moment", "second_moment")}
    values = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    after, _ = inner.update(torch.ones(2), value, slots, values, 0)
    (slope,) = torch.autograd.grad(after.sum(), value)
    torch.testing.assert_close(slope, torch.full((2,), -0.1 / 1e-8))


def test_nan_stays_nan():
    gradient = torch.tensor([float("nan"), 1.0])
    slots = {name: torch.zeros(2) for name in ("first_moment", "second_moment")}
    values = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    after, _ = Adam().update(torch.ones(2), gradient, slots, values, 0)
    assert after.isnan().tolist() == [True, False]


@pytest.mark.parametrize("ours", [Adam, AdamW])
def test_arguments_out_of_range(ours):
    for arguments, message in [
        ({"betas": (0.9, 1.0)}, "beta2 is 1.0"),
        ({"betas": 0.9}, "a pair"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"groups": [{"params": ["*"], "betas": (1.5, 0.9)}]}, "beta1 is 1.5"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            ours(**arguments)
    with pytest.raises(UnknownNameError, match="'beta'"):
        ours(groups=[{"params": ["*"], "beta": 0.9}])


def test_where_both_moments_are_the_same_the_present_one_counts():
    gradient = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    inner = Adam(lr=0.1, betas=(0.5, 0.0), amsgrad=True)
    slots = {name: torch.zeros(2).double() for name in ("first_moment", "second_moment")}
    slots["largest_second_moment"] = torch.tensor([0.25, 0.25], dtype=torch.float64)
    values = inner.hyperparameters
    after, moments = inner.update(torch.zeros(2).double(), gradient, slots, values, 3)
    assert torch.equal(moments["largest_second_moment"], moments["second_moment"])
    (slope,) = torch.autograd.grad(after.sum(), gradient)
    closed = inner.sensitivity(torch.zeros(2).double(), gradient.detach(), slots, values, 3)
    torch.testing.assert_close(slope, closed)
    # m̂ / (|g| + eps) with m linear in g: the slopes of both all but cancel.
    assert float(slope.abs().max()) < 1e-7


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_what_is_left_out(ours, theirs):
    reference.assert_defaults(ours, theirs)


@pytest.mark.parametrize("ours", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_gradient_of_zero_has_the_slope_of_a_linear_step(ours, amsgrad):
    # m̂ = (1 − β₁) g / (1 − β₁ᵗ), and √v̂ is of second order in g.
    inner = ours(lr=0.1, betas=(0.5, 0.9), eps=0.5, weight_decay=0.0, amsgrad=amsgrad)
    reference.assert_rest(inner, -0.1 / 0.5)
    reference.assert_rest(inner, -0.1 * 0.5 / (1 - 0.5**3) / 0.5, step=2)


def test_moments_are_kept_as_far_as_they_are_needed():
    parameters = {"p": torch.ones(2)}
    for inner, number in (
        (Adam(), 2),
        (Adam(amsgrad=True), 3),
        (Adam(groups=[{"params": ["p"], "amsgrad": True}]), 3),
        (Adam(amsgrad=True, groups=[{"params": ["p"], "amsgrad": False}]), 3),
    ):
        slots = inner.init_slots(parameters)
        assert len(slots) == number
        assert all(not own["p"].any() for own in slots.values())


def test_betas_are_a_pair_in_groups_too():
    groups = [{"params": ["p"], "betas": [0.5, 0.25], "lr": 0.3}]
    inner = Adam(betas=[0.7, 0.8], groups=groups)
    assert (inner.hyperparameters["beta1"], inner.hyperparameters["beta2"]) == (0.7, 0.8)
    assert inner.groups == [{"params": ["p"], "lr": 0.3, "beta1": 0.5, "beta2": 0.25}]
    assert groups == [{"params": ["p"], "betas": [0.5, 0.25], "lr": 0.3}]
    for betas in ((0.9,), (0.9, 0.99, 0.999), None):
        with pytest.raises(ConfigurationError, match="a pair is needed, of beta1 and beta2"):
            Adam(betas=betas)
