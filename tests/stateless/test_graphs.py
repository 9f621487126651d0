"""What the graphs of losses give away: live tensors, missing gradients, cut second derivatives."""

import copy
import functools

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import (
    GMRES,
    EvoGrad,
    FiniteDifference,
    ForwardMode,
    Implicit,
    OneStep,
    Unrolled,
)
from metatoolkit.stateless.graphs import graph_nodes, inspect_graph, watch_second_derivatives
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS

SECOND_ORDER = {
    "Unrolled": lambda: Unrolled(1),
    "ForwardMode": lambda: ForwardMode(1),
    "OneStep": OneStep,
    "Implicit": lambda: Implicit(GMRES(3)),
}
mixed = functools.partial(Unrolled, product="forward_over_reverse")
second_order = pytest.mark.parametrize("make", SECOND_ORDER.values(), ids=SECOND_ORDER.keys())


def value_case(train_loss, x=0.7, penalty=0.4):
    def valid_loss(model, meta, batch):
        return (model.value - 0.5) ** 2

    problem = mt.BilevelProblem(bank.Value(x), bank.Value(penalty), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Once(Square):
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


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
    assert inspect_graph((function(x) + 1).sin() * 2, "loss", {}, {"x": x}) is custom


def weight_norm_case(layer):
    torch.manual_seed(0)
    model = nn.Sequential(layer(nn.Linear(3, 2)), nn.Tanh(), nn.Linear(2, 1)).double()
    batch = (torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))

    def train_loss(model, meta, batch):
        return (F.mse_loss(model(batch[0]), batch[1], reduction="none") * meta.value).mean()

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([[1.0]] * 5), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [batch], batch)


@pytest.mark.parametrize("steps", [2, 3])
def test_weight_norm_is_told_to_be_differentiated_wrongly(steps):
    case = weight_norm_case(torch.nn.utils.parametrizations.weight_norm)
    with pytest.warns(UserWarning, match=r"weight_norm.*g \* v / v.norm"):
        case.call(Unrolled(steps))


class Normalized(nn.Module):
    """The way out: g · v / ‖v‖ written out."""

    def __init__(self, layer):
        super().__init__()
        self.g = nn.Parameter(layer.weight.detach().norm(dim=1, keepdim=True))
        self.v = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)


def test_weight_norm_written_out_is_right():
    case = weight_norm_case(Normalized)
    check = mt.check_hypergradient(
        case.problem, case.inner, Unrolled(2), case.batches(2), case.valid_batch
    )
    assert check.relative_error < 1e-7


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_penalty_on_captured_parameters_is_refused(name):
    model, meta = nn.Linear(2, 1).double(), bank.Value(0.1)
    captured = list(model.parameters())

    def train_loss(model, meta, batch):
        return model(batch).square().mean() + meta.value * sum(p.square().sum() for p in captured)

    def valid_loss(model, meta, batch):
        return model(batch).square().mean()

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    batch = torch.randn(4, 2, dtype=torch.float64)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    estimator = ESTIMATORS[name]()
    if name == "FirstOrder" or name == "Reptile":
        pytest.skip("takes λ in the initial state only")
    with pytest.raises(
        ConfigurationError, match=r"model\.(weight|bias).*list\(model\.parameters\(\)\)"
    ):
        case.call(estimator)
    with pytest.raises(ConfigurationError, match="outside of the loss"):
        case.inner.step(problem, case.state, problem.meta_parameters(), batch)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_outer_loss_of_captured_parameters_is_refused(name):
    model, meta = bank.Value(0.3), bank.Value(0.4)
    captured = list(model.parameters())

    def train_loss(model, meta, batch):
        return (model.value - 1) ** 2 + meta.value * model.value**2

    def valid_loss(model, meta, batch):
        return (model.value - 0.5) ** 2 + meta.value * captured[0] ** 2

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    if name == "Reptile":
        pytest.skip("takes λ in the initial state only")
    with pytest.raises(ConfigurationError, match=r"valid_loss uses the parameter 'model\.value'"):
        case.call(ESTIMATORS[name]())


def test_a_captured_meta_parameter_is_refused():
    meta = bank.Value(0.4)
    penalty = meta.value.exp()

    def train_loss(model, _, batch):
        return (model.value - 1) ** 2 + penalty * model.value**2

    def valid_loss(model, _, batch):
        return (model.value - 0.5) ** 2

    problem = mt.BilevelProblem(bank.Value(0.3), meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    with pytest.raises(ConfigurationError, match=r"meta\.value"):
        case.call(Unrolled(1))


def test_the_penalty_that_the_error_tells_to_write_is_right():
    model, meta = nn.Linear(2, 1, bias=False).double(), bank.Value(0.1)

    def train_loss(model, meta, batch):
        return meta.value * sum(p.square().sum() for p in model.parameters())

    def valid_loss(model, meta, batch):
        return model.weight.sum()

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    found = case.call(Unrolled(1)).gradient["value"]
    torch.testing.assert_close(found, -0.2 * model.weight.detach().sum())


def test_parameters_of_another_network_are_constants():
    teacher = nn.Linear(1, 1).double()

    def train_loss(model, meta, batch):
        return (model.value - teacher(torch.ones(1, dtype=torch.float64)).sum()) ** 2 * meta.value

    case = value_case(train_loss)
    target = float(teacher(torch.ones(1, dtype=torch.float64)).detach())
    after = 0.7 - 0.1 * 0.4 * 2 * (0.7 - target)
    expected = 2 * (after - 0.5) * -0.1 * 2 * (0.7 - target)
    assert float(case.call(Unrolled(1)).gradient["value"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "cut",
    [
        lambda loss: loss.detach(),
        lambda loss: torch.tensor(loss.item()),
        lambda loss: torch.tensor(0.3, requires_grad=True) * loss.detach(),
    ],
)
def test_a_training_loss_without_a_graph_is_an_error(cut):
    case = value_case(lambda model, meta, batch: cut((model.value - meta.value) ** 2))
    with pytest.raises(UnsupportedError, match=r"no gradient in any inner parameter.*detach\(\)"):
        case.inner.step(case.problem, case.state, case.problem.meta_parameters(), None)
    for estimator in (Unrolled(1), FiniteDifference(), ForwardMode(2)):
        with pytest.raises(UnsupportedError, match="no gradient in any inner parameter"):
            case.call(estimator)


def test_inference_mode_is_an_error():
    case = value_case(lambda model, meta, batch: (model.value - meta.value) ** 2)
    state = case.state
    with torch.inference_mode():
        with pytest.raises(UnsupportedError, match="inference_mode"):
            case.inner.step(case.problem, state, case.problem.meta_parameters(), None)
        for make in ESTIMATORS.values():
            with pytest.raises(UnsupportedError, match="inference_mode"):
                case.call(make(), state)
    with torch.no_grad():
        right = case.call(Unrolled(1), state).gradient["value"]
    torch.testing.assert_close(right, case.call(Unrolled(1), state).gradient["value"])


def test_a_copy_of_a_problem_knows_its_own_parameters():
    case = bank.illustration()
    copied = copy.deepcopy(case.problem)
    del case
    others = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(100)]

    def train_loss(model, meta, batch):
        return (model.value - meta.value) ** 2 + sum(others)

    copied.train_loss = train_loss
    again = bank.ProblemInstance(copied, mt.inner.SGD(lr=0.1), [None], None)
    assert again.call(Unrolled(1)).gradient["value"].isfinite()


def test_what_lies_before_given_tensors_is_not_looked_at():
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    watch_second_derivatives(Once.apply(x * 2).detach() * x, [x])
    moved = Once.apply(x * 2)
    watch_second_derivatives(moved.sin(), [moved])
    with pytest.raises(UnsupportedError, match="Once is marked once_differentiable"):
        watch_second_derivatives(Once.apply(moved * 3).sin(), [moved])
    # Not between the loss and what it is differentiated in.
    other = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    aside = (other * 1).sin()
    watch_second_derivatives(Once.apply(moved) * aside, [aside])


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


def test_the_warning_of_weight_norm_names_each_once():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="weight_norm is wrong") as told:
        watch_second_derivatives(layer(x).sum(), list(layer.parameters()))
    assert len(told) == 1 and told[0].filename == __file__


def test_what_a_live_parameter_is_given_as_is_accepted():
    live = torch.tensor(0.7, requires_grad=True)
    other = torch.tensor(0.2, requires_grad=True)
    names = {id(live): "model.w"}
    assert inspect_graph(live * 2, "loss", names, {"model.w": live}) is False
    assert inspect_graph(other * live.detach(), "loss", names, {"model.w": other}) is False
    # One that no tensor was given for is a constant of the evaluation.
    assert inspect_graph(live * 2, "loss", names, {}) is False
    with pytest.raises(ConfigurationError, match=r"loss uses the parameter 'model\.w'"):
        inspect_graph(other * live, "loss", names, {"model.w": other})


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
