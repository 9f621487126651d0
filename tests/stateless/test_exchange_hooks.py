"""Hooks on saved tensors, gradients and modules see the tensors of their pass."""

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.testing import bank
from tests.stateless.checkpointed import sine_problem


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
