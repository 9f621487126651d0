"""Losses without the derivatives that an estimator needs: an error with the way out."""

import pytest
import torch
import torch.nn.functional as F

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    GMRES,
    SAMA,
    EvoGrad,
    EvolutionStrategies,
    FiniteDifference,
    ForwardMode,
    Implicit,
    OneStep,
    Unrolled,
)
from metatoolkit.hypergradients.autograd_errors import missing_derivatives
from metatoolkit.testing import bank

MIXED = Unrolled(2, product="forward_over_reverse")
TOKENS, STARTS = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2])


def ctc(weight):
    log_probabilities = weight.reshape(6, 1, 4).log_softmax(-1)
    return F.ctc_loss(
        log_probabilities, torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2])
    )


def bag(weight):
    return F.embedding_bag(TOKENS, weight.reshape(6, 4), STARTS, mode="max").square().sum()


def margin(weight):
    return F.multi_margin_loss(weight.reshape(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]))


def distances(weight):
    return torch.cdist(weight.reshape(6, 4), torch.ones(3, 4, dtype=weight.dtype)).square().sum()


def problem_of(loss, scale=0.3):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, generator=generator, dtype=torch.float64).tolist()
    return mt.BilevelProblem(
        bank.Value(weight),
        bank.Value(scale),
        lambda model, meta, batch: meta.value * loss(model.value),
        lambda model, meta, batch: model.value.square().sum(),
    )


def call(estimator, loss, scale=0.3):
    problem, inner = problem_of(loss, scale), mt.inner.SGD(lr=0.1)
    batches = [None] * estimator.horizon
    return estimator(problem, inner, inner.init(problem), batches, None)


@pytest.mark.parametrize(
    ("loss", "operator"),
    [
        (ctc, "_ctc_loss_backward"),
        (bag, "_embedding_bag_backward"),
        (margin, "multi_margin_loss_backward"),
    ],
)
@pytest.mark.parametrize(
    "estimator",
    [Unrolled(2), ForwardMode(2), Implicit(GMRES(3)), OneStep()],
    ids=lambda value: type(value).__name__,
)
def test_a_missing_second_derivative_names_the_operator_and_who_does_without(
    estimator, loss, operator
):
    name = type(estimator).__name__
    message = rf"{name} takes second derivatives .*{operator} lacks .*FiniteDifference, SAMA, EvoG"
    with pytest.raises(UnsupportedError, match=message) as caught:
        call(estimator, loss)
    assert isinstance(caught.value.__cause__, RuntimeError)


# The compiler looks at the gradient of each input, and those of later steps are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "estimator",
    [Unrolled(3), ForwardMode(3), Implicit(GMRES(3)), OneStep(), MIXED, FiniteDifference()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_compiled_is_right_or_refused(estimator):
    def eager(weight):
        return weight.sin().square().sum()

    torch._dynamo.reset()
    expected = call(estimator, eager).gradient["value"]
    try:
        found = call(estimator, torch.compile(eager, backend="aot_eager")).gradient["value"]
    except UnsupportedError as error:
        assert "torch.compile lacks" in str(error) and "FiniteDifference" in str(error)
        assert type(estimator) in (Unrolled, ForwardMode, Implicit, OneStep)
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("loss", "operator"),
    [(ctc, "_ctc_loss"), (bag, "_embedding_bag"), (distances, "_cdist_forward")],
)
def test_a_missing_forward_mode_names_both_ways_out(loss, operator):
    message = rf"no forward mode: the operator {operator} lacks.*reverse_over_reverse.*SAMA"
    with pytest.raises(UnsupportedError, match=message):
        call(MIXED, loss)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return 2 * value

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_function_without_a_jvp_is_told():
    with pytest.raises(UnsupportedError, match=r"no forward mode: .*jvp function.*reverse_over"):
        call(MIXED, lambda weight: Doubled.apply(weight).square().sum())


@pytest.mark.parametrize("loss", [ctc, bag, margin])
def test_those_that_are_named_do_without(loss):
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    problem = problem_of(loss)
    weight = problem.model.value.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(weight), weight)
    exact = (2 * (weight - 0.1 * scale.detach() * slope) @ slope) * -0.1
    for estimator in (FiniteDifference(), SAMA()):
        found = call(estimator, loss).gradient["value"]
        expected = exact if isinstance(estimator, FiniteDifference) else -0.2 * weight @ slope
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-8)
    for estimator in (EvoGrad(2, 0.1, 0.5), EvolutionStrategies(1, 2, 0.1)):
        assert bool(torch.isfinite(call(estimator, loss).gradient["value"]))


def test_a_missing_first_derivative_is_told_apart():
    def loss(weight):
        return torch.special.gammainc(weight.exp(), weight.exp()).sum()

    for estimator in (Unrolled(1), FiniteDifference()):
        with pytest.raises(UnsupportedError, match=r"igamma.*has no derivative.*another operator"):
            call(estimator, loss)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            "derivative for aten::_scaled_dot_product_efficient_attention_backward is not "
            "implemented",
            r"operator _scaled_dot_product_efficient_attention_backward",
        ),
        (
            "the derivative for '_cudnn_rnn_backward' is not implemented: Double backwards is not "
            "supported for CuDNN RNNs",
            r"operator _cudnn_rnn_backward.*CuDNN RNNs",
        ),
        (
            "Trying to differentiate twice a function that was marked with @once_differentiable",
            r"a function lacks",
        ),
        (
            "Trying to backward through lib.mine.default but no autograd formula was registered.",
            r"operator lib\.mine\.default",
        ),
        ("Autograd not implemented for flex_attention_backward", "second .*flex_attention_back"),
        (
            "Trying to use forward AD with foo that does not support it because it has not been "
            "implemented yet.",
            r"no forward mode: the operator foo lacks it",
        ),
        ("ZeroTensors are immutable.", r"no forward mode: an operation lacks it"),
        ("FlexAttention does not support backward on CPU.", "operator FlexAttention"),
    ],
)
def test_the_words_of_pytorch_are_understood(raised, message):
    with pytest.raises(UnsupportedError, match=message), missing_derivatives("Unrolled"):
        raise RuntimeError(raised)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        UnsupportedError("derivative for aten::x is not implemented"),
        ValueError("derivative for aten::x is not implemented"),
    ],
)
def test_other_errors_go_on_as_they_are(error):
    with pytest.raises(type(error)) as caught, missing_derivatives("Unrolled"):
        raise error
    assert caught.value is error
