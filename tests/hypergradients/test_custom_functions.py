"""Functions with a backward pass of their own in finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, OneStep
from metatoolkit.inner import SGD
from tests.hypergradients.test_detached import case_of, cross_entropies, relative_error

ESTIMATORS = {
    "FiniteDifference": (FiniteDifference(), OneStep()),
    "SAMA": (SAMA(), OneStep(False)),
    "guided": (EvoGrad(2, 1e-4, 5.0, guided=True, rescale=1.0), OneStep(False)),
}
estimators = pytest.mark.parametrize(("estimator", "limit"), ESTIMATORS.values(), ids=ESTIMATORS)


class NumpySine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return torch.from_numpy(np.sin(inputs.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class Product(torch.autograd.Function):
    """Two arguments, a number, and the newer way to write it."""

    @staticmethod
    def forward(one, other, factor):
        return factor * one.detach() * other.detach()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx, gradient):
        one, other = ctx.saved_tensors
        return ctx.factor * gradient * other, ctx.factor * gradient * one, None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return (inputs * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


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


# As many a module keeps it.
numpy_sine = NumpySine.apply


@torch.library.custom_op("metatoolkit_tests::sine", mutates_args=())
def sine(inputs: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(inputs.detach().numpy()))


sine.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def with_function(function):
    def train_loss(model, meta, batch):
        losses = F.cross_entropy(function(model(batch[0])), batch[1], reduction="none")
        return (meta(function(losses)) * losses).mean()

    return train_loss


@estimators
@pytest.mark.parametrize(
    "function",
    [numpy_sine, sine, lambda x: Product.apply(x, x.cos(), 1.5)],
    ids=["numpy", "operator", "product"],
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
