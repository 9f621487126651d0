"""What a model runs again during a backward pass sees the tensors of its first pass."""

import _thread
import functools
import math
import os
import threading
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import GMRES, FiniteDifference, ForwardMode, Implicit, Unrolled
from metatoolkit.hypergradients.base import double_backward_kernels
from metatoolkit.stateless.exchange import turn, within
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS

plainly = functools.partial(checkpoint, use_reentrant=False)


class Sine(nn.Module):
    """sin(w · x), computed by ``run``."""

    def __init__(self, run):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.run = run

    def forward(self, x):
        return self.run(lambda x: torch.sin(self.w * x), x)


def sine_problem(run):
    return mt.BilevelProblem(
        Sine(run),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model(batch),
        lambda model, meta, batch: model(batch) ** 2,
    )


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


RUNS = {
    "as it is": lambda function, x: function(x),
    "checkpointed": plainly,
    "checkpoint in a checkpoint": lambda function, x: plainly(lambda x: plainly(function, x), x),
    "in sequence": lambda function, x: checkpoint_sequential(
        nn.Sequential(nn.Identity(), _Called(function)), 2, x, use_reentrant=False
    ),
}


class _Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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


class Net(nn.Module):
    """Blocks with BatchNorm, dropout and a buffer that each pass moves, checkpointed or not."""

    def __init__(self, run):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3))
            for _ in range(2)
        )
        self.norm = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.last = nn.Linear(4, 1)
        self.run = run

    def forward(self, x):
        for block in [*self.blocks, self.norm]:
            x = self.run(block, x)
        return self.last(x)


def net_case(run):
    torch.manual_seed(3)
    model = Net(run).double()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randn(8, 1, generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]

    def train_loss(model, meta, batch):
        return F.mse_loss(model(batch[0] * meta.value), batch[1])

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([1.0] * 4), train_loss, valid_loss)
    return bank.ProblemInstance(
        problem, mt.inner.SGD(lr=0.1, momentum=0.5), batches[:2], batches[2]
    )


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


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_second_order_through_a_checkpointed_hugging_face_model(model):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_dropout_prob": 0.1, "num_hidden_layers": 2, "num_attention_heads": 2}
    if model == "bert":
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_labels=3, **sizes
        )
        network = transformers.BertForSequenceClassification(config).double()
    else:
        config = transformers.GPT2Config(
            vocab_size=20,
            n_embd=8,
            n_layer=2,
            n_head=2,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        network = transformers.GPT2ForSequenceClassification(config).double()

    def train_loss(model, meta, batch):
        return (F.cross_entropy(model(batch).logits, labels, reduction="none") * meta.value).mean()

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch).logits, labels)

    labels = torch.tensor([0, 1, 2, 1])
    batch = torch.arange(1, 17).view(4, 4)
    problem = mt.BilevelProblem(network, bank.Value([1.0, 0.5, 2.0, 1.5]), train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    estimators = [Unrolled(2), Implicit(GMRES(3)), ForwardMode(1, chunk=1), FiniteDifference()]
    rights = [case.call(estimator) for estimator in estimators]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    for estimator, right in zip(estimators, rights, strict=True):
        found = case.call(estimator)
        torch.testing.assert_close(found.gradient, right.gradient, rtol=1e-8, atol=1e-12)
        assert float(right.gradient["value"].abs().max()) > 1e-4


def test_threads_take_turns():
    case = net_case(plainly)
    first = [(batch[0].clone(), batch[1]) for batch in case.train_batches]
    right = case.call(Unrolled(2))
    results, errors = [], []

    def work():
        try:
            for _ in range(5):
                results.append(case.call(Unrolled(2)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(results) == 15
    for result in results:
        torch.testing.assert_close(result.gradient, right.gradient, rtol=0, atol=0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, case.train_batches, strict=True))


class Counted(nn.Module):
    """A buffer that moves before the checkpointed part reads it."""

    def __init__(self, run, replaced):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("count", torch.ones((), dtype=torch.float64))
        self.run = run
        self.replaced = replaced

    def forward(self, x):
        if self.replaced:
            self.count = self.count + 1
        else:
            self.count += 1
        return self.run(lambda x: torch.sin(self.w * x * self.count), x)


@pytest.mark.parametrize("run", [RUNS["as it is"], plainly], ids=["as it is", "checkpointed"])
@pytest.mark.parametrize("replaced", [False, True])
def test_buffers_are_run_again_as_they_were_at_that_place(run, replaced):
    problem = mt.BilevelProblem(
        Counted(run, replaced),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model(batch),
        lambda model, meta, batch: model(batch),
    )
    inner, x = mt.inner.SGD(lr=0.1), torch.tensor(1.0, dtype=torch.float64)
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), x)
    assert float(state.parameters["w"]) == pytest.approx(0.7 - 0.1 * 2 * math.cos(1.4))
    assert float(state.buffers["model.count"]) == 2
    state, _ = inner.step(problem, state, problem.meta_parameters(), x)
    assert float(state.buffers["model.count"]) == 3


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules_in_a_checkpoint_are_run_again_with_the_state(kind):
    def recurrent_case(run):
        torch.manual_seed(1)

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = kind(2, 3)

            def forward(self, x):
                return run(lambda x: self.cell(x)[0], x)

        model = Recurrent().double()
        generator = torch.Generator().manual_seed(1)
        batch = torch.randn(4, 1, 2, generator=generator, dtype=torch.float64)

        def train_loss(model, meta, batch):
            return model(batch * meta.value).square().mean()

        problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, train_loss)
        return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [batch], batch)

    plain, checkpointed = recurrent_case(RUNS["as it is"]), recurrent_case(plainly)
    flat = list(checkpointed.problem.model.cell._flat_weights)
    right, found = plain.call(Unrolled(3)), checkpointed.call(Unrolled(3))
    torch.testing.assert_close(found.gradient, right.gradient)
    left = checkpointed.problem.model.cell._flat_weights
    assert len(left) == 4 and all(a is b for a, b in zip(left, flat, strict=True))


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent():
    holds, ends = threading.Event(), threading.Event()

    def hold():
        with turn():
            holds.set()
            ends.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(20)
    child = os.fork()
    if child == 0:
        with turn():
            os._exit(7)
    ends.set()
    thread.join()
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits")
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_an_exchange_that_cannot_begin_leaves_everything_and_holds_up_nobody(kind):
    case = net_case(plainly)
    problem, state = case.problem, case.state
    live = list(problem.model.parameters())
    parameters, buffers = dict(state.parameters), dict(state.buffers)
    (parameters if kind == "parameters" else buffers)["model.unknown"] = torch.zeros(())
    with pytest.raises(KeyError, match="unknown"):
        problem.evaluate_train(parameters, {}, buffers, case.train_batches[0], 0)
    assert all(a is b for a, b in zip(problem.model.parameters(), live, strict=True))
    thread = threading.Thread(target=lambda: case.call(Unrolled(1)), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_that_works_for_one_that_waits_is_let_in():
    # As the threads of the autograd engine are, which Python has not started.
    entered, done = threading.Event(), threading.Event()

    def work():
        with turn():
            entered.set()
        done.set()

    with turn():
        _thread.start_new_thread(work, ())
        assert done.wait(20) and entered.is_set()
        # One that Python has started waits.
        thread = threading.Thread(target=work)
        entered.clear()
        thread.start()
        assert not entered.wait(0.05)
    thread.join(20)
    assert entered.is_set()


def test_hooks_for_saved_tensors_can_be_used_again():
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    def unpack(tensor):
        unpacked.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def run(function, x):
        with hooks:
            return function(x)

    problem, x = sine_problem(run), torch.tensor(1.0, dtype=torch.float64)
    inner = mt.inner.SGD(lr=1.0)
    state = inner.init(problem)
    counts = []
    for _ in range(2):
        state, _ = inner.step(problem, state, problem.meta_parameters(), x)
        counts.append((len(packed), len(unpacked)))
    assert hooks.unpack_hook is unpack and hooks.pack_hook is pack
    first = 1.0 - math.cos(1.0)
    assert float(state.parameters["w"]) == pytest.approx(first - math.cos(first), rel=1e-14)
    assert counts[0][0] > 0 and counts[1] == (2 * counts[0][0], 2 * counts[0][1])
    assert counts[0][1] > 0


class Scaled(torch.autograd.Function):
    """The identity, with a gradient times w²."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (w,) = ctx.saved_tensors
        return gradient * w**2, None


class Hooked(nn.Module):
    """sin(w · x), whose gradient a hook multiplies with w², set by ``hook``."""

    def __init__(self, hook):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.hook = hook

    def forward(self, x):
        inside = self.w * x
        return self.hook(self, torch.sin(inside), inside)


def _on_tensor(module, output, inside):
    if inside.requires_grad:
        inside.register_hook(lambda gradient: gradient * module.w**2)
    return output


def _on_node(module, output, inside):
    if inside.requires_grad:
        inside.grad_fn.register_prehook(lambda gradients: (gradients[0] * module.w**2,))
    return output


def _after_node(module, output, inside):
    if output.requires_grad:
        output.grad_fn.register_hook(lambda after, before: (after[0] * module.w**2,))
    return output


class _Passes(nn.Module):
    def forward(self, x):
        return x * 1.0


def _on_module(module, output, inside):
    passes = _Passes()
    passes.register_full_backward_hook(lambda _, after, before: (after[0] * module.w**2,))
    return torch.sin(passes(inside))


HOOKS = (_on_tensor, _on_node, _after_node, _on_module)


def hooked_case(hook):
    problem = mt.BilevelProblem(
        Hooked(hook),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model(batch),
        lambda model, meta, batch: (model.w - 0.3) ** 2,
    )
    x = torch.tensor(1.0, dtype=torch.float64)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [x], x)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_gradients_see_the_tensors_of_their_pass(hook):
    case = hooked_case(hook)
    state, w = case.state, 1.0
    for _ in range(3):
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.batches(1)[0]
        )
        w = w - 0.5 * math.cos(w) * w**2
    assert float(state.parameters["w"]) == pytest.approx(w, rel=1e-14)


@pytest.mark.parametrize("hook", [_on_tensor, _on_node, _on_module])
@pytest.mark.parametrize("steps", [1, 3])
def test_hypergradients_through_hooks_are_those_of_a_function(hook, steps):
    def function(module, output, inside):
        return torch.sin(Scaled.apply(inside, module.w))

    for estimator in (Unrolled(steps), Unrolled(steps, checkpoint="sqrt"), ForwardMode(steps)):
        right = hooked_case(function).call(estimator).gradient
        found = hooked_case(hook).call(estimator).gradient
        torch.testing.assert_close(found, right, rtol=1e-12, atol=0)


def test_hooks_outside_of_evaluations_are_those_of_torch():
    w = torch.tensor(2.0, requires_grad=True)
    seen = []
    handle = w.register_hook(seen.append)
    (w * 3).backward()
    handle.remove()
    (w * 3).backward()
    assert [float(gradient) for gradient in seen] == [3.0]


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


def test_kernels_are_put_back_also_where_threads_overlap():
    entered, done = threading.Event(), threading.Event()

    def work():
        with double_backward_kernels():
            entered.set()
            done.wait(20)

    thread = threading.Thread(target=work)
    with double_backward_kernels():
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(20)
    done.set()
    thread.join(20)
    assert torch.backends.cuda.flash_sdp_enabled()
