"""Functions with a backward pass of their own in finite differences."""

import contextlib
import types

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, GuidedEvoGrad, OneStep
from metatoolkit.hypergradients.custom_functions import (
    check_derivative,
    observed,
)
from metatoolkit.inner import SGD
from tests.hypergradients.custom import NumpySine, Product, Rounded, sine
from tests.hypergradients.held_losses import case_of, cross_entropies, relative_error

ESTIMATORS = {
    "FiniteDifference": (FiniteDifference(), OneStep()),
    "SAMA": (SAMA(), OneStep(False)),
    "GuidedEvoGrad": (GuidedEvoGrad(1e-4, 5.0, rescale=1.0), OneStep(False)),
}
estimators = pytest.mark.parametrize(("estimator", "limit"), ESTIMATORS.values(), ids=ESTIMATORS)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Limited(torch.autograd.Function):
    """The gradient is limited where the value is not."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1e-3, 1e-3)


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient


class Unchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def normalized(inputs):
    """A function of torch that is written in Python."""
    wide = inputs.unsqueeze(-1).unsqueeze(-1)
    return torch.nn.CrossMapLRN2d(2, alpha=3.0)(wide.reshape(-1, 1, 1, 1)).reshape(inputs.shape)


# As many a module keeps it.
numpy_sine = NumpySine.apply


def with_function(function):
    def train_loss(model, meta, batch):
        losses = F.cross_entropy(function(model(batch[0])), batch[1], reduction="none")
        return (meta(function(losses)) * losses).mean()

    return train_loss


@estimators
@pytest.mark.parametrize(
    "function",
    [numpy_sine, sine, lambda x: Product.apply(x, x.cos(), 1.5), Unchanged.apply],
    ids=["numpy", "operator", "product", "unchanged"],
)
def test_are_computed_whatever_they_detach_inside(function, estimator, limit):
    case = case_of(with_function(function), SGD(lr=1.0))
    state = case.state
    error = relative_error(case.call(estimator, state), case.call(limit, state))
    assert error < (1e-3 if isinstance(estimator, EvoGrad) else 1e-7)
    assert "forward" in vars(NumpySine)
    assert NumpySine.forward.__name__ == "forward" and not hasattr(NumpySine.forward, "__wrapped__")


@estimators
@pytest.mark.parametrize("function", [Rounded, Reversed, Limited, Same])
def test_a_backward_pass_that_is_no_derivative_is_an_error(function, estimator, limit):
    case = case_of(with_function(function.apply), SGD(lr=1.0))
    with pytest.raises(UnsupportedError, match=rf"{function.__name__} is not the.*OneStep or Un"):
        case.call(estimator)


@estimators
def test_is_found_where_the_loss_does_not_feel_it(estimator, limit):
    # λ = 0 hides it from the loss and from its gradient in θ, but not from the hypergradient.
    def train_loss(model, meta, batch):
        losses = cross_entropies(model, batch)
        return losses.mean() + (meta.log_penalty + 4.0) * Rounded.apply(losses).sum()

    case = case_of(train_loss, SGD(lr=1.0))
    with pytest.raises(UnsupportedError, match="Rounded"):
        case.call(estimator)


@estimators
def test_a_function_of_meta_parameters_alone_may_be_straight_through(estimator, limit):
    def train_loss(model, meta, batch):
        losses = cross_entropies(model, batch)
        gate = Rounded.apply(meta.layers[0].weight).sum() + meta.log_penalty
        return (meta(losses) * losses).mean() * gate

    case = case_of(train_loss, SGD(lr=1.0))
    state = case.state
    assert relative_error(case.call(estimator, state), case.call(limit, state)) < 1e-6


def test_a_function_that_the_loss_defines_is_an_error():
    def train_loss(model, meta, batch):
        class Local(torch.autograd.Function):
            @staticmethod
            def forward(ctx, inputs):
                return inputs.detach() * 2

            @staticmethod
            def backward(ctx, gradient):
                return gradient * 2

        losses = cross_entropies(model, batch)
        return (meta(Local.apply(losses)) * losses).mean()

    with pytest.raises(UnsupportedError, match=r"Local while it runs"):
        case_of(train_loss).call(FiniteDifference())


def checked(forward, derivative, start, end):
    """Check an elementwise function between two points, given its derivative."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * derivative(ctx.saved_tensors[0]), None

    def call(args):
        calls.append(args[1])
        return Function.apply(*args)

    calls = []
    one, other = (torch.tensor(x, dtype=torch.float64) for x in (start, end))
    check_derivative(Function, call, (other, 3.0), [one], [forward(one)], [forward(other)])
    assert set(calls) <= {3.0}
    return len(calls)


@pytest.mark.parametrize(
    ("forward", "derivative"),
    [
        (lambda x: x**3, lambda x: 3 * x**2),
        (torch.exp, torch.exp),
        (torch.sin, torch.cos),
    ],
    ids=["cube", "exp", "sin"],
)
def test_the_points_may_be_far_apart(forward, derivative):
    # The derivative at the end alone is off by far.
    assert checked(forward, derivative, [0.1, 0.2], [2.0, 1.5]) == 1 + 9


def test_the_derivative_at_the_end_does_where_the_points_are_near():
    assert checked(torch.exp, torch.exp, [0.1, 0.2], [0.11, 0.18]) == 1


def test_nothing_is_called_where_nothing_moves():
    assert checked(torch.exp, lambda x: 0 * x, [0.1, 0.2], [0.1, 0.2]) == 0


@pytest.mark.parametrize(
    ("slope", "is_wrong"),
    [(1.85, False), (1.75, True), (2.18, False), (2.27, True), (0.0, True), (-2.0, True)],
)
def test_a_tenth_is_the_limit(slope, is_wrong):
    points = ([0.1, 0.2, -0.4], [0.11, 0.18, -0.45])
    if is_wrong:
        with pytest.raises(UnsupportedError, match="Function is not the derivative"):
            checked(lambda x: 2 * x, lambda x: slope + 0 * x, *points)
    else:
        assert checked(lambda x: 2 * x, lambda x: slope + 0 * x, *points) == 1


@pytest.mark.parametrize(("move", "is_wrong"), [(1e-15, False), (1e-13, True)])
def test_what_rounding_hides_is_not_held_against_it(move, is_wrong):
    points = ([1.0, 1.0], [1.0 + move, 1.0 - move])
    if is_wrong:
        with pytest.raises(UnsupportedError):
            checked(lambda x: 2 * x, lambda x: -2 + 0 * x, *points)
    else:
        checked(lambda x: 2 * x, lambda x: -2 + 0 * x, *points)


class SineAndCosine(torch.autograd.Function):
    """Several results, of which one has no derivative, and two arguments of another kind."""

    wrong = 1.0

    @staticmethod
    def forward(ctx, flag, x, count):
        ctx.save_for_backward(x)
        whole = x.round().long()
        ctx.mark_non_differentiable(whole)
        return x.sin(), whole, x.cos()

    @staticmethod
    def backward(ctx, sine, whole, cosine):
        (x,) = ctx.saved_tensors
        return None, sine * x.cos() - SineAndCosine.wrong * cosine * x.sin(), None


@pytest.mark.parametrize("wrong", [1.0, 3.0])
def test_several_results(wrong, monkeypatch):
    monkeypatch.setattr(SineAndCosine, "wrong", wrong)
    one, other = (torch.tensor(x, dtype=torch.float64) for x in ([0.3, 1.0], [0.9, 1.4]))

    def check():
        check_derivative(
            SineAndCosine,
            lambda args: SineAndCosine.apply(*args),
            ("flag", other, 2),
            [one],
            [one.sin(), one.cos()],
            [other.sin(), other.cos()],
        )

    if wrong == 1.0:
        check()
    else:
        with pytest.raises(UnsupportedError, match="SineAndCosine is not"):
            check()


@pytest.mark.parametrize("moves", [True, False])
def test_a_function_without_a_derivative(moves):
    one, other = torch.tensor([0.4, 1.7]), torch.tensor([0.6, 1.4])
    results = other.round() if moves else one.round()

    def check():
        check_derivative(
            Rounded, lambda args: args[0].detach(), (other,), [one], [one.round()], [results]
        )

    if moves:
        with pytest.raises(UnsupportedError):
            check()
    else:
        check()


@pytest.mark.parametrize("estimator", [FiniteDifference(), SAMA()], ids=["DARTS", "SAMA"])
def test_draws_with_a_derivative_of_their_distribution_are_an_error(estimator):
    def noise(inputs):
        return torch.distributions.Beta(inputs.exp(), inputs.exp() + 1.0).rsample()

    with pytest.raises(UnsupportedError, match="_Dirichlet is not the derivative"):
        case_of(with_function(noise), SGD(lr=1.0)).call(estimator)


@pytest.mark.parametrize("measured", [True, False])
def test_functions_of_torch_in_python_are_computed(measured):
    # It has no second derivative; the difference of first ones is that of a formula.
    def train_loss(respond):
        def loss(model, meta, batch):
            hidden = respond(model(batch[0]))
            losses = F.cross_entropy(hidden, batch[1], reduction="none")
            return (meta(losses) * losses).mean()

        return loss

    def formula(x):
        return x / (1.0 + 3.0 / 2 * x.square()) ** 0.75

    results = []
    for respond in (normalized, formula):
        case = case_of(train_loss(respond), SGD(lr=1.0))
        with FlopCounterMode(display=False) if measured else contextlib.nullcontext():
            results.append(case.call(FiniteDifference()))
    assert relative_error(*results) < 1e-6


def test_a_forward_pass_that_is_called_by_hand():
    kept = []
    seen = []
    context = types.SimpleNamespace(save_for_backward=kept.append)
    with observed(lambda cls, args, call: seen.append((cls, len(args))) or call()):
        assert NumpySine.forward(context, torch.zeros(1)).tolist() == [0.0]
    assert seen == [(NumpySine, 1)] and len(kept) == 1


def test_a_function_that_is_not_called_again_is_an_error():
    calls = []

    def train_loss(model, meta, batch):
        calls.append(1)
        losses = cross_entropies(model, batch)
        return (meta(numpy_sine(losses) if len(calls) % 2 else losses) * losses).mean()

    with pytest.raises(UnsupportedError, match="a custom function was not called again"):
        case_of(train_loss, SGD(lr=1.0)).call(FiniteDifference())
