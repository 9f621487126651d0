"""What a model runs again during a backward pass sees the tensors of its first pass."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import GMRES, FiniteDifference, ForwardMode, Implicit, Unrolled
from metatoolkit.stateless.exchange import within
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS
from tests.stateless.checkpointed import RUNS, net_case, plainly, sine_problem


class RecomputedSine(torch.autograd.Function):
    """A reversible block of one's own: its backward pass calls the module again."""

    @staticmethod
    def forward(ctx, function, x, w):
        ctx.function = function
        ctx.save_for_backward(x, w)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        with torch.enable_grad():
            output = ctx.function(x)
        create = torch.is_grad_enabled()
        (found,) = torch.autograd.grad(output, w, gradient, create_graph=create)
        return None, None, found


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_base_steps_are_those_of_the_model_without_checkpointing(run):
    problem = sine_problem(run)
    inner = mt.inner.SGD(lr=1.0)
    state, x = inner.init(problem), torch.tensor(1.0, dtype=torch.float64)
    for _ in range(2):
        state, _ = inner.step(problem, state, problem.meta_parameters(), x)
    first = 1.0 - math.cos(1.0)
    assert float(state.parameters["w"]) == pytest.approx(first - math.cos(first), rel=1e-14)


def test_a_function_that_calls_the_module_in_its_backward_pass_sees_the_state():
    problem = sine_problem(None)
    model = problem.model
    model.run = lambda function, x: RecomputedSine.apply(function, x, model.w)
    inner = mt.inner.SGD(lr=1.0)
    state, x = inner.init(problem), torch.tensor(1.0, dtype=torch.float64)
    for _ in range(2):
        state, _ = inner.step(problem, state, problem.meta_parameters(), x)
    first = 1.0 - math.cos(1.0)
    assert float(state.parameters["w"]) == pytest.approx(first - math.cos(first), rel=1e-14)
    plain = sine_problem(lambda function, x: function(x))
    arguments = (inner, inner.init(plain), [x, x], x)
    right = Unrolled(2)(plain, *arguments).gradient["value"]
    torch.testing.assert_close(Unrolled(2)(problem, *arguments).gradient["value"], right)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_what_it_is_without_checkpointing(name):
    plain, checkpointed = net_case(lambda block, x: block(x)), net_case(plainly)
    try:
        right = plain.call(ESTIMATORS[name]())
    except UnsupportedError as error:
        pytest.skip(f"unsupported: {error}")
    if name in ("ForwardMode(3)", "ForwardGradient(3)"):
        # Dropout of a pass that is run again cannot be batched over directions.
        with pytest.raises(UnsupportedError, match="chunk=1"):
            checkpointed.call(ESTIMATORS[name]())
        return
    found = checkpointed.call(ESTIMATORS[name]())
    torch.testing.assert_close(found.gradient, right.gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.state.parameters, right.state.parameters)
    torch.testing.assert_close(found.state.buffers, right.state.buffers)
    live = checkpointed.problem.buffers()
    torch.testing.assert_close(live, plain.problem.buffers(), rtol=0, atol=0)


def test_an_estimator_within_a_loss_is_right():
    def outer_case(run):
        lower = sine_problem(run)
        inner = mt.inner.SGD(lr=0.3)
        state = inner.init(lower)
        x = torch.tensor(0.7, dtype=torch.float64)

        def train_loss(model, meta, batch):
            # Two steps of another problem, differentiated by the outer one.
            point = state
            for _ in range(2):
                point, _ = inner.step(lower, point, {"value": model.value * meta.value}, x, True)
            return lower.evaluate_valid(
                point.parameters, {"value": model.value}, point.buffers, x, 0
            )

        def valid_loss(model, meta, batch):
            return (model.value - 1) ** 2

        problem = mt.BilevelProblem(bank.Value(0.5), bank.Value(1.2), train_loss, valid_loss)
        return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [None], None)

    plain, checkpointed = outer_case(RUNS["as it is"]), outer_case(plainly)
    right, found = plain.call(Unrolled(2)), checkpointed.call(Unrolled(2))
    torch.testing.assert_close(found.gradient, right.gradient)
    assert float(right.gradient["value"].abs()) > 1e-3


def test_an_evaluation_can_be_differentiated_later():
    problem = sine_problem(plainly)
    w = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    x = torch.tensor(1.0, dtype=torch.float64)
    loss, _ = problem.evaluate_train({"w": w}, problem.meta_parameters(), {}, x, 0)
    (first,) = torch.autograd.grad(loss, w, create_graph=True)
    (second,) = torch.autograd.grad(first, w)
    assert first.item() == pytest.approx(math.cos(0.4))
    assert float(second) == pytest.approx(-math.sin(0.4))


def test_reentrant_checkpointing_is_refused():
    case = net_case(functools.partial(checkpoint, use_reentrant=True))
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        case.call(Unrolled(1))
    with pytest.raises(UnsupportedError, match="gradient_checkpointing_enable"):
        case.inner.step(case.problem, case.state, {}, case.train_batches[0])


def test_selective_checkpointing_is_refused_where_it_is_differentiated_twice():
    contexts = functools.partial(
        create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy.MUST_SAVE
    )
    problem = sine_problem(functools.partial(plainly, context_fn=contexts))
    x = torch.tensor(1.0, dtype=torch.float64)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [x], x)
    for estimator in (Unrolled(2), ForwardMode(1), Implicit(GMRES(3))):
        with pytest.raises(UnsupportedError, match="FiniteDifference"):
            case.call(estimator)
    found = case.call(FiniteDifference()).gradient["value"]
    problem.model.run = plainly
    torch.testing.assert_close(found, case.call(Unrolled(1)).gradient["value"])


class CallsBackward(torch.autograd.Function):
    """A checkpoint of one's own that lets gradients run into the .grad fields."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.function(x)
        torch.autograd.backward(output, gradient)
        return None, x.grad


def test_a_backward_pass_that_calls_backward_is_refused():
    first = iter([lambda block, x: block(x)])
    case = net_case(lambda block, x: next(first, CallsBackward.apply)(block, x))
    with pytest.raises(UnsupportedError, match=r"calls backward\(\)"):
        case.inner.step(case.problem, case.state, {}, case.train_batches[0])
    assert all(p.grad is None for p in case.problem.model.parameters())


def test_the_sum_of_losses_runs_a_custom_function_again_as_they_do():
    problem = sine_problem(None)
    model = problem.model
    model.run = lambda function, x: RecomputedSine.apply(function, x, model.w)
    x = torch.tensor(1.0, dtype=torch.float64)
    penalty = mt.hypergradients.Penalty(2.0, steps=3)
    arguments = (mt.inner.SGD(lr=0.3), [x] * 3, x)

    def call(problem):
        inner, batches, valid_batch = arguments
        return penalty(problem, inner, inner.init(problem), batches, valid_batch)

    plain = call(sine_problem(RUNS["as it is"]))
    penalty = mt.hypergradients.Penalty(2.0, steps=3)
    torch.testing.assert_close(call(problem).gradient, plain.gradient)


def test_gradients_that_a_refused_backward_pass_has_added_are_taken_back():
    first = iter([lambda block, x: block(x)])
    case = net_case(lambda block, x: next(first, CallsBackward.apply)(block, x))
    problem, state = case.problem, case.state
    leaves = {n: tensor.detach().requires_grad_() for n, tensor in state.parameters.items()}
    held = {name: torch.full_like(tensor, 2.0) for name, tensor in leaves.items()}
    for name, tensor in leaves.items():
        tensor.grad = held[name]
    meta = problem.meta_parameters()
    loss, _ = problem.evaluate_train(leaves, meta, state.buffers, case.valid_batch, 0)
    with pytest.raises(UnsupportedError, match=r"calls backward\(\)"), within(loss):
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    assert all(leaves[name].grad is gradient for name, gradient in held.items())


def test_checkpoints_of_nobodys_problem_are_pytorchs():
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = checkpoint(torch.sin, w, use_reentrant=True)
    loss.backward()
    assert float(w.grad) == pytest.approx(math.cos(0.3))
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        checkpoint(torch.sin, w.detach(), use_reentrant=True)


def test_an_error_of_a_backward_pass_is_not_hidden_by_a_buffer_that_it_filled():
    problem = sine_problem(None)
    model = problem.model
    model.register_buffer("mask", None)
    problem = mt.BilevelProblem(model, problem.meta, problem.train_loss, problem.valid_loss)
    model.run = lambda function, x: RecomputedSine.apply(function, x, model.w)
    w = {"w": torch.tensor(0.4, dtype=torch.float64, requires_grad=True)}
    x = torch.tensor(1.0, dtype=torch.float64)
    loss, _ = problem.evaluate_train(w, problem.meta_parameters(), {}, x, 0)
    with pytest.raises(ZeroDivisionError), within(loss):
        model.mask = torch.ones(1)
        raise ZeroDivisionError
    assert model.mask is None
    with pytest.raises(UnsupportedError, match=r"fills 'model\.mask'"), within(loss):
        model.mask = torch.ones(1)
    assert model.mask is None


def test_what_is_exchanged_is_a_parameter_to_all_code_but_that_of_torch():
    seen = []

    def loss(model, meta, batch):
        seen.append([isinstance(t, nn.Parameter) for t in (model.w, meta.value, batch)])
        # Torch would register a parameter, which would outlast the pass.
        model.kept = model.w
        return meta.value * model.w

    problem = mt.BilevelProblem(sine_problem(None).model, bank.Value(2.0), loss, loss)
    value = torch.tensor(3.0, dtype=torch.float64)
    given = ({"w": value}, {"value": torch.tensor(1.0, dtype=torch.float64)}, {})
    problem.evaluate_train(*given, torch.ones(()), 0)
    assert seen[-1] == [True, True, False] and problem.model.kept is value
    assert list(problem.model._parameters) == ["w"]
    assert not isinstance(value, nn.Parameter) and isinstance(problem.model.w, nn.Parameter)
