"""The adjoint by forward over reverse mode against that by double backward."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import check_hypergradient
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.hypergradients.mixed_mode import (
    MixedStep,
    forward_over_reverse,
    step_with_gradients,
)
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.inner import SGD
from metatoolkit.testing import bank
from tests.hypergradients.test_unrolled import PRODUCTS, error, flat


def test_constants_of_a_loss_are_constants_in_both_modes():
    case = bank.small_net()

    def train_loss(model, meta, batch):
        with torch.no_grad():
            teacher = model(batch[0]).softmax(1)
        losses = F.cross_entropy(model(batch[0]), teacher, reduction="none")
        return (meta(losses.detach()) * losses).mean()

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    one, other = (flat(case.call(Unrolled(3, product=product))) for product in PRODUCTS)
    assert error(one, other) < 1e-12


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inputs = nn.LayerNorm(6), nn.Linear(6, 18)

    def forward(self, inputs):
        q, k, v = self.inputs(self.norm(inputs)).unsqueeze(0).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v).squeeze(0)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(6, 3)

    def forward(self, inputs):
        return self.cell(inputs.unsqueeze(1))[0].squeeze(1)


def with_model(model):
    case = bank.small_net()

    def train_loss(model, meta, batch):
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (meta(losses) * losses).mean()

    problem = mt.BilevelProblem(model, case.problem.meta, train_loss, case.problem.valid_loss)
    return dataclasses.replace(case, problem=problem, inner=SGD(lr=0.5))


@pytest.mark.parametrize("kind", [Attention, Recurrent])
def test_fused_kernels_in_both_modes(kind):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        case = with_model(kind().double())
    one, other = (flat(case.call(Unrolled(3, product=product))) for product in PRODUCTS)
    assert error(one, other) < 1e-12
    check = check_hypergradient(
        case.problem, case.inner, Unrolled(3), case.batches(3), case.valid_batch
    )
    assert check.relative_error < 1e-6, check


LOSSES = {
    "mse_loss": F.mse_loss,
    "mse_loss by name": lambda outputs, targets: F.mse_loss(
        target=targets[:, 1:2], input=outputs[:, :1]
    ),
    "mse_loss of constants": lambda outputs, targets: (
        F.mse_loss(targets, outputs) + F.mse_loss(targets, targets / 2) * outputs.square().mean()
    ),
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "kl_div": lambda outputs, targets: F.kl_div(
        outputs.log_softmax(1), targets, reduction="batchmean"
    ),
    "binary_cross_entropy": lambda outputs, targets: F.binary_cross_entropy(
        outputs.sigmoid(), targets
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torch_in_mixed_mode(name):
    case = bank.small_net()

    def train_loss(model, meta, batch):
        loss = LOSSES[name](model(batch[0]), F.one_hot(batch[1], 3).double())
        return loss + meta.log_penalty.exp() * model[0].weight.square().sum()

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    one, other = (flat(case.call(Unrolled(3, product=product))) for product in PRODUCTS)
    assert error(one, other) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("product", PRODUCTS)
def test_an_initial_state_is_that_of_the_present_meta(product, steps):
    case = bank.started()
    state = case.state
    with torch.no_grad():
        case.problem.meta.value.add_(0.5)
    result = case.call(Unrolled(steps, product=product), state)
    expected = bank.started_hypergradient(case, steps)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-13)
    reached = 1.3 * (1 - 0.1 * sum(case.batches(steps)))
    assert float(result.state.parameters["value"]) == pytest.approx(reached, rel=1e-14)


def test_a_step_alone():
    case = bank.small_net()
    meta = case.problem.meta_leaves()
    batch = case.train_batches[1]
    # In the middle of training, where momentum and running statistics are other than at first.
    state, gradients = step_with_gradients(
        case.problem, case.inner, case.state, meta, case.train_batches[0]
    )
    plain, _ = case.inner.step(case.problem, case.state, meta, case.train_batches[0])
    for one, other in zip(state.tensors(), plain.tensors(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad
    assert all(torch.equal(b, plain.buffers[n]) for n, b in state.buffers.items())
    assert state.step == 1 and not any(g.requires_grad for g in gradients.values())

    graph = StepGraph(case.problem, case.inner, state, meta, batch)
    _, gradients = step_with_gradients(case.problem, case.inner, state, meta, batch)
    adjoint = [torch.randn_like(tensor) for tensor in state.tensors()]
    adjoint[2] = None
    expected = graph.pull_back(adjoint)
    for given in (gradients, None):
        step = MixedStep(case.problem, case.inner, state, meta, batch, given)
        for one, other in zip(step.after.tensors(), graph.after.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        moved = graph.after if given is None else state
        assert all(torch.equal(b, moved.buffers[n]) for n, b in step.after.buffers.items())
        for found, right in zip(step.pull_back(adjoint), expected, strict=True):
            for one, other in zip(found, right, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    last = MixedStep(case.problem, case.inner, state, meta, batch, gradients, False)
    before, direct = last.pull_back(adjoint)
    assert before == []
    for one, other in zip(direct, expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    nothing = [None] * len(adjoint)
    assert last.pull_back(nothing) == ([], [None] * len(meta))
    step = MixedStep(case.problem, case.inner, state, meta, batch, gradients)
    assert step.pull_back(nothing) == (nothing, [None] * len(meta))


def test_what_has_no_forward_mode_is_an_error():
    case = with_model(nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3)).double())
    case.call(Unrolled(2))
    with pytest.raises(UnsupportedError, match=r"silu.*product='reverse_over_reverse'"):
        case.call(Unrolled(2, product="forward_over_reverse"))

    class Twice(SGD):
        def step(self, problem, state, meta, batch, create_graph=False):
            state, _ = super().step(problem, state, meta, batch, create_graph)
            return super().step(problem, state, meta, batch, create_graph)

    case = bank.ridge()
    case.inner = Twice(lr=0.1)
    check = check_hypergradient(
        case.problem, case.inner, Unrolled(2), case.batches(2), case.valid_batch
    )
    assert check.relative_error < 1e-8
    with pytest.raises(UnsupportedError, match=r"Twice is another map.*reverse_over_reverse"):
        case.call(Unrolled(2, product="forward_over_reverse"))


@pytest.mark.parametrize("steps", [1, 3])
def test_learned_rates_in_mixed_mode(steps):
    case = bank.schedule(steps)
    found = flat(case.call(Unrolled(steps, product="forward_over_reverse")))
    assert error(found, bank.schedule_hypergradient(case)) < 1e-12


def test_arguments_by_name_reach_what_runs_without_gradients():
    case = bank.small_net()

    def train_loss(model, meta, batch):
        with torch.no_grad():
            teacher = torch.softmax(model(batch[0]), dim=1)
        losses = F.cross_entropy(model(batch[0]), teacher, reduction="none", label_smoothing=0.3)
        return (meta(losses.detach()) * losses).sum() + F.mse_loss(
            model(batch[0]).tanh(), teacher, reduction="sum"
        )

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    one, other = (flat(case.call(Unrolled(3, product=product))) for product in PRODUCTS)
    assert error(one, other) < 1e-12


def test_errors_of_other_kinds_stay_as_they_are():
    for raised in (RuntimeError("out of memory"), UnsupportedError("forward AD is told of")):
        with pytest.raises(type(raised)) as caught, forward_over_reverse():
            raise raised
        assert caught.value is raised


def test_what_is_given_to_a_step_is_left_alone():
    case = bank.small_net()
    meta, batch = case.problem.meta_leaves(), case.train_batches[0]
    state = case.state
    after, gradients = step_with_gradients(case.problem, case.inner, state, meta, batch)
    step = MixedStep(case.problem, case.inner, state, meta, batch, gradients)
    step.pull_back([torch.ones_like(tensor) for tensor in state.tensors()])
    given = [*state.tensors(), *gradients.values(), *after.tensors(), *after.buffers.values()]
    assert not any(tensor.requires_grad for tensor in given)
    assert all(tensor.grad is None for tensor in meta.values())


def test_a_warning_of_torch_about_itself_is_kept_quiet_and_no_other():
    with forward_over_reverse():
        warnings.warn("`torch.jit.script` is deprecated.", FutureWarning, stacklevel=1)
        assert not torch.backends.cuda.flash_sdp_enabled()
    with pytest.warns(FutureWarning, match="another one"), forward_over_reverse():
        warnings.warn("another one", FutureWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="jit"), forward_over_reverse():
        warnings.warn("torch.jit.script", UserWarning, stacklevel=1)
