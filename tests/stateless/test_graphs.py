"""What the graphs of losses give away: live tensors, missing gradients, cut second derivatives."""

import functools

import numpy
import pytest
import torch
from torch.autograd.function import once_differentiable

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    GMRES,
    EvoGrad,
    FiniteDifference,
    ForwardMode,
    Implicit,
    OneStep,
    Unrolled,
)
from metatoolkit.stateless.graphs import (
    coarse_types,
    graph_nodes,
    inspect_graph,
    watch_second_derivatives,
)
from metatoolkit.testing import bank
from tests.stateless.functions import Once, Square, value_case

SECOND_ORDER = {
    "Unrolled": lambda: Unrolled(1),
    "ForwardMode": lambda: ForwardMode(1),
    "OneStep": OneStep,
    "Implicit": lambda: Implicit(GMRES(3)),
}
mixed = functools.partial(Unrolled, product="forward_over_reverse")
second_order = pytest.mark.parametrize("make", SECOND_ORDER.values(), ids=SECOND_ORDER.keys())


class Detached(Square):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * gradient.detach()


class Unrecorded(Square):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return 2 * x * gradient


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach().numpy()
        return torch.as_tensor(numpy.square(ctx.kept))

    @staticmethod
    def backward(ctx, gradient):
        return torch.as_tensor(2 * ctx.kept * gradient.detach().numpy())


class OnceAutocast(Square):
    """Other decorators may lie around."""

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


CUTS = [Once, OnceAutocast, Detached, Unrecorded, ByNumpy]


@second_order
@pytest.mark.parametrize("function", CUTS)
@pytest.mark.parametrize("place", ["last", "inside"])
def test_a_function_that_cuts_the_second_derivative_is_named(make, function, place):
    def train_loss(model, meta, batch):
        bent = function.apply(model.value * meta.value)
        return (bent if place == "last" else bent.sin()) + meta.value * model.value

    with pytest.raises(UnsupportedError, match=rf"{function.__name__}.*FiniteDifference, SAMA"):
        value_case(train_loss).call(make())


@second_order
def test_a_function_with_a_second_derivative_is_differentiated(make):
    def loss_with(function):
        def train_loss(model, meta, batch):
            return function(model.value * meta.value) + meta.value * model.value

        return train_loss

    right = value_case(loss_with(torch.square)).call(make()).gradient["value"]
    found = value_case(loss_with(Square.apply)).call(make()).gradient["value"]
    torch.testing.assert_close(found, right)


def test_first_order_estimators_take_such_functions():
    def loss_with(function):
        def train_loss(model, meta, batch):
            return function(model.value * meta.value) + meta.value * model.value

        return train_loss

    right = value_case(loss_with(torch.square)).call(OneStep()).gradient["value"]
    found = value_case(loss_with(Once.apply)).call(FiniteDifference()).gradient["value"]
    torch.testing.assert_close(found, right, rtol=1e-6, atol=0)
    value_case(loss_with(Once.apply)).call(EvoGrad())


@pytest.mark.parametrize("make", [*SECOND_ORDER.values(), mixed], ids=[*SECOND_ORDER, "mixed"])
def test_such_a_function_of_the_meta_parameters_only_cuts_nothing(make):
    def loss_with(function):
        def train_loss(model, meta, batch):
            return (function(meta.value) * model.value - 1) ** 2

        return train_loss

    right = value_case(loss_with(torch.square)).call(make()).gradient["value"]
    if make is SECOND_ORDER["ForwardMode"]:
        with pytest.raises(UnsupportedError, match="Once is marked once_differentiable"):
            value_case(loss_with(Once.apply)).call(make())
        return
    found = value_case(loss_with(Once.apply)).call(make()).gradient["value"]
    torch.testing.assert_close(found, right)


class Identity(torch.autograd.Function):
    """A straight-through estimator: linear, so that nothing is cut."""

    @staticmethod
    def forward(ctx, x):
        ctx.strength = 2.0
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.strength


def test_a_linear_backward_pass_cuts_nothing():
    def train_loss(model, meta, batch):
        return Identity.apply(model.value).mean() + meta.value * model.value

    assert float(value_case(train_loss).call(Unrolled(1)).gradient["value"]) == pytest.approx(
        -0.1 * 2 * (0.7 - 0.1 * (2.0 + 0.4) - 0.5)
    )


class Combined(torch.autograd.Function):
    """a + b², or a · b, with a backward pass that may forget about b."""

    @staticmethod
    def forward(ctx, a, b, kind):
        ctx.kind = kind
        ctx.save_for_backward(a, b)
        return a + b**2 if kind == "sum" else a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        if ctx.kind == "sum":
            return gradient, 2 * b * gradient, None
        if ctx.kind == "product":
            return b * gradient, a * gradient, None
        return (b * gradient).detach(), a * gradient, None


def combined_case(kind):
    def train_loss(model, meta, batch):
        if kind == "sum":
            return Combined.apply(model.value, model.value * meta.value, kind)
        return Combined.apply(model.value, model.value * meta.value, kind).sin()

    return value_case(train_loss)


def test_of_several_gradients_one_may_be_constant():
    case, x, penalty = combined_case("sum"), 0.7, 0.4
    after = x - 0.1 * (1 + 2 * x * penalty**2)
    expected = 2 * (after - 0.5) * -0.1 * 4 * x * penalty
    assert float(case.call(Unrolled(1)).gradient["value"]) == pytest.approx(expected)


def test_of_several_gradients_none_may_be_cut():
    combined_case("product").call(Unrolled(1))
    with pytest.raises(UnsupportedError, match="Combined has a backward pass without a graph"):
        combined_case("cut").call(Unrolled(1))


class Zeros(Square):
    """A second input that nothing depends on may be given zeros."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient, torch.zeros_like(x)


def test_zeros_are_not_cut():
    def loss_with(function):
        def train_loss(model, meta, batch):
            return function(model.value * meta.value).sin()

        return train_loss

    right = value_case(loss_with(torch.square)).call(Unrolled(1)).gradient["value"]
    found = value_case(loss_with(lambda x: Zeros.apply(x, x))).call(Unrolled(1)).gradient["value"]
    torch.testing.assert_close(found, right)


def test_each_node_is_seen_once():
    x = torch.tensor(0.5, requires_grad=True)
    for _ in range(30):
        x = x * x
    assert len(list(graph_nodes([x, x]))) == 31


def test_a_given_tensor_may_come_from_the_live_one():
    case = bank.illustration()
    problem = case.problem
    moved = {name: p * 2 for name, p in problem.model.named_parameters()}
    meta = {name: p * 1 for name, p in problem.meta.named_parameters()}
    loss, _ = problem.evaluate_train(moved, meta, {}, None, 0)
    (slope,) = torch.autograd.grad(loss, problem.model.value)
    assert float(slope) == pytest.approx(2 * (2 * (0.6 - 1) + 0.4 * 2 * 0.6))
    problem.check_structure()
    loss, _ = problem.evaluate_train(moved, {}, {}, None, 0)
    assert loss.requires_grad


@pytest.mark.parametrize("function, custom", [(Square.apply, True), (torch.square, False)])
def test_custom_functions_are_found(function, custom):
    x = torch.tensor(0.5, requires_grad=True)
    assert inspect_graph((function(x) + 1).sin() * 2, "loss", {}.get, {"x": x}) is custom


class Scaled(torch.autograd.Function):
    """c · x; its backward pass reads constants only."""

    @staticmethod
    def forward(ctx, x, constants):
        ctx.save_for_backward(torch.tensor(3.0, dtype=torch.float64), None)
        ctx.constants = constants
        return 3 * x

    @staticmethod
    def backward(ctx, gradient):
        scale, _ = ctx.saved_tensors
        return scale.clone(), None


CONSTANTS = [2, 0.5, 1j, True, "text", torch.Size([2]), torch.float64, torch.device("cpu"), None]


def test_constants_of_a_backward_pass_cut_nothing():
    def train_loss(model, meta, batch):
        kept = [*CONSTANTS, {"deep": (1, "a")}]
        return Scaled.apply(model.value, kept) + meta.value * model.value

    found = value_case(train_loss).call(Unrolled(1)).gradient["value"]
    assert float(found) == pytest.approx(-0.1 * 2 * (0.7 - 0.1 * (3.0 + 0.4) - 0.5))


@pytest.mark.parametrize("kept", [[torch.ones(1)], {"deep": numpy.ones(1)}, object()])
def test_whatever_else_a_backward_pass_may_read_cuts(kept):
    def train_loss(model, meta, batch):
        return Scaled.apply(model.value, kept) + meta.value * model.value

    with pytest.raises(UnsupportedError, match="Scaled has a backward pass without a graph"):
        value_case(train_loss).call(Unrolled(1))


@pytest.mark.parametrize(
    ("module", "watched"), [("torch", False), ("torch.nn.some", False), ("torchmine.a", True)]
)
def test_functions_of_torch_itself_are_trusted(monkeypatch, module, watched):
    monkeypatch.setattr(Detached, "__module__", module)
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = Detached.apply(x).sin()
    watch_second_derivatives(loss, [x])
    if not watched:
        torch.autograd.grad(loss, x, create_graph=True)
        return
    # The first derivative takes it.
    torch.autograd.grad(loss, x, retain_graph=True)
    with pytest.raises(UnsupportedError, match="Detached has a backward pass without a graph"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_function_that_lies_aside_hides_no_other(swapped):
    x, other = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.2))
    factors = [Square.apply(other), Once.apply(x * 2)]
    first, second = reversed(factors) if swapped else factors
    with pytest.raises(UnsupportedError, match="Once is marked once_differentiable"):
        watch_second_derivatives(first * second, [x])


class Assembled(Square):
    """A backward pass that is no plain function."""

    backward = staticmethod(functools.partial(lambda power, ctx, g: power * ctx.x * g, 2))

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x**2


def test_a_backward_pass_may_be_any_callable():
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = Assembled.apply(x)
    watch_second_derivatives(loss, [x])
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert (float(slope.detach()), float(curvature)) == pytest.approx((1.4, 2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_that_a_graph_computes_in(dtype):
    x = torch.ones(3, requires_grad=True)
    loss = (x * 2).to(dtype).sin().float().sum()
    assert coarse_types(loss) == {dtype} - {torch.float32}
    assert coarse_types(x.detach().to(dtype).sum()) == set()
