"""RMSprop against torch.optim.RMSprop, autograd and finite differences, dead coordinates too."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.inner import RMSprop
from metatoolkit.testing import bank
from tests.inner import reference

OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.2},
    {"lr": 0.005, "momentum": 0.8},
    {"lr": 0.01, "centered": True, "weight_decay": 0.1},
    {"lr": 0.005, "alpha": 0.9, "centered": True, "momentum": 0.5, "eps": 1e-2},
    {"lr": 0.001, "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(RMSprop(**options), torch.optim.RMSprop, options)


def test_groups_equal_torch():
    options = {"lr": 0.01, "weight_decay": 0.1}
    for special in (
        [{"lr": 0.02, "momentum": 0.7}, {"alpha": 0.9}],
        [{"centered": True, "momentum": 0.3}, {"maximize": True, "lr": 1e-3}],
    ):
        inner = RMSprop(**options, groups=reference.groups_of(special))
        reference.assert_follows(inner, torch.optim.RMSprop, options, special)
        reference.assert_sensitivity(inner)


class Ramp(torch.nn.Module):
    """Coordinates whose gradients hardly change, of very different sizes."""

    def __init__(self, dtype):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("drift", [0.0, 1e-9])
def test_centered_near_cancellation(dtype, momentum, drift):
    scales = torch.tensor([1.0, 0.3, 1e-4, 1e-18], dtype=dtype)

    def loss(model, meta, batch):
        return (meta.value.exp() * scales * model.value * (1 + drift * model.value)).sum()

    options = {"lr": 1e-3, "alpha": 0.5, "centered": True, "momentum": momentum}
    problem = mt.BilevelProblem(Ramp(dtype), bank.Value(0.0, dtype), loss, loss)
    inner, model = RMSprop(**options), Ramp(dtype)
    stepper = torch.optim.RMSprop(model.parameters(), **options)
    state = inner.init(problem)
    for _ in range(80):
        before = state
        stepper.zero_grad()
        loss(model, problem.meta, None).backward()
        stepper.step()
        state, _ = inner.step(problem, state, problem.meta_parameters(), None)
        ours, theirs = state.parameters["value"], model.value.detach()
        finite = theirs.isfinite()
        assert ours.isfinite().all()
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-6, atol=0)
    for product in ("reverse_over_reverse", "forward_over_reverse"):
        estimator = Unrolled(5, product=product)
        gradient = estimator(problem, inner, before, [None] * 5, None).gradient["value"]
        assert gradient.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(RMSprop(**options))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(centered, dead):
    values = {"lr": 0.02, "alpha": 0.9, "eps": 0.05, "decay": 0.2, "momentum": 0.6}

    def make(meta):
        return RMSprop(
            lr=meta["lr"],
            alpha=lambda meta, step: meta["alpha"],
            eps=meta["eps"],
            weight_decay=meta["decay"],
            momentum=meta["momentum"],
            centered=centered,
        )

    reference.assert_differences(make, values, dead=dead)


@pytest.mark.parametrize("centered", [False, True])
def test_dead_coordinates_are_finite_and_right(centered):
    check = reference.loss_check(RMSprop(lr=0.01, centered=centered), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


@pytest.mark.parametrize("options", [{}, {"centered": True}, {"momentum": 0.5}])
@pytest.mark.parametrize("steps", [1, 3])
def test_derivative_where_the_gradient_is_zero_at_this_meta_parameter(options, steps):
    # After one step θ₂ = lr · λ / (c |λ| + eps): its slope at λ = 0 is lr / eps.
    gradient, objective = reference.resting(RMSprop(lr=0.1, eps=0.5, **options), steps=steps)
    shift = 1e-6
    assert gradient == pytest.approx((objective(shift) - objective(-shift)) / (2 * shift), rel=1e-4)
    if steps == 1:
        assert gradient == pytest.approx(0.1 / 0.5, rel=1e-12)


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"alpha is 1.0"):
        RMSprop(alpha=1.0)


@pytest.mark.parametrize("excess", [0.0, 2e-16, -2e-16])
@pytest.mark.parametrize("drift", [0.0, 1e-7])
def test_what_rounding_leaves_of_the_variance_is_a_constant(excess, drift):
    # s and a whose step ends at s = a², up to an excess that rounding may have left.
    gradient = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    fixed = gradient.detach()
    average = fixed * (1 + drift)
    square = (0.9 * average + 0.1 * fixed).square() * (1 + excess)
    slots = {
        "square_average": (square - 0.1 * fixed.square()) / 0.9,
        "gradient_average": average,
    }
    inner = RMSprop(lr=0.1, alpha=0.9, centered=True)
    values = inner.hyperparameters
    after, _ = inner.update(torch.zeros(2).double(), gradient, slots, values, 5)
    (slope,) = torch.autograd.grad(after.sum(), gradient)
    # θ⁺ = −lr g / (held + eps), of which nothing but g varies.
    torch.testing.assert_close(slope, after.detach() / fixed, rtol=1e-12, atol=0)
    closed = inner.sensitivity(torch.zeros(2).double(), fixed, slots, values, 5)
    torch.testing.assert_close(closed, slope, rtol=1e-12, atol=0)


def test_what_is_left_out():
    reference.assert_defaults(RMSprop, torch.optim.RMSprop)


def test_a_gradient_of_zero_has_the_slope_of_a_linear_step():
    for options in ({}, {"centered": True}, {"momentum": 0.5}):
        reference.assert_rest(RMSprop(lr=0.1, eps=0.5, **options), -0.1 / 0.5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, set()),
        ({"centered": True}, {"gradient_average"}),
        ({"momentum": 0.5}, {"velocity"}),
        ({"momentum": torch.tensor(0.0)}, {"velocity"}),
        ({"groups": [{"params": ["*"], "centered": True}]}, {"gradient_average"}),
        ({"groups": [{"params": ["*"], "momentum": 0.5}]}, {"velocity"}),
    ],
)
def test_running_means_are_kept_as_far_as_they_are_needed(options, names):
    slots = RMSprop(**options).init_slots({"p": torch.ones(2)})
    assert set(slots) == {"square_average"} | names
    assert all(not own["p"].any() for own in slots.values())


@pytest.mark.parametrize(("excess", "held"), [(0, True), (1, True), (4, True), (5, False)])
def test_how_much_of_the_variance_may_be_rounding(excess, held):
    # s = 1 and a² = 1 − n eps, both to rounding.
    eps = torch.finfo(torch.float64).eps
    mean = torch.tensor([1 - excess * eps / 2], dtype=torch.float64)
    before = torch.tensor([1 + excess * eps], dtype=torch.float64)
    slots = {"square_average": before, "gradient_average": mean}
    values = {"alpha": 0.5, "centered": True}
    after, length, constant = RMSprop._averages(mean, slots, values)
    assert float(after["square_average"]) == 1.0
    assert float(after["gradient_average"]) == float(mean)
    assert float(length) == pytest.approx((excess * eps) ** 0.5, rel=1e-12)
    assert bool(constant) is held
