"""What a loss takes for a constant, against the exact one-step hypergradient."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import SAMA, FiniteDifference, GuidedEvoGrad, OneStep
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.testing import bank

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True", "ignore:To copy construct from a tensor"
)
LOSSES = {}
REFUSED = {}


def cross_entropies(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def seen(function):
    """Meta-Weight-Net, whose weights see the losses through a function."""

    def train_loss(model, meta, batch):
        losses = cross_entropies(model, batch)
        return (meta(function(losses)) * losses).mean()

    LOSSES[function.__name__] = train_loss
    return function


@seen
def detached_in_place(losses):
    seen = losses * 1.0
    seen.detach_()
    return seen


@seen
def divided_by_an_item(losses):
    return losses / losses.mean().item()


@seen
def as_a_list(losses):
    return torch.tensor(losses.tolist(), dtype=losses.dtype)


@seen
def by_numpy(losses):
    return torch.from_numpy(np.tanh(losses.detach().numpy()))


@seen
def by_a_float(losses):
    return losses * math.exp(-float(losses.mean()))


@seen
def by_an_integer(losses):
    return losses * int(losses.sum())


@seen
def by_a_branch(losses):
    return losses if losses.mean() > 0.3 else 2 * losses


@seen
def without_recording(losses):
    with torch.no_grad():
        seen = losses * 1.0
        seen /= seen.sum()
    return seen


@seen
@torch.no_grad()
def decorated(losses):
    return torch.softmax(losses, 0)


@seen
def cloned(losses):
    with torch.no_grad():
        return losses.clone()


@seen
def as_new_tensors(losses):
    return torch.stack([torch.tensor(loss.item()) for loss in losses]).to(losses) + torch.tensor(
        losses.detach()
    )


@seen
def in_inference_mode(losses):
    with torch.inference_mode():
        seen = losses * 2
    return seen.clone()


@seen
def quantized_by_hand(losses):
    return losses + ((losses * 5).round() / 5 - losses).detach()


@seen
def rounded(losses):
    return (losses * 10).round() / 10 + losses


@seen
def by_sign(losses):
    return (losses - losses.mean()).sign() * losses


@seen
def as_an_array_written_over(losses):
    values = losses.detach().clone().numpy()
    values *= 2.0
    return torch.from_numpy(values)


@seen
def as_an_array_by_force(losses):
    values = np.array(losses.numpy(force=True))
    values *= 2.0
    return torch.from_numpy(values)


@seen
def as_a_tensor_whose_array_is_written_over(losses):
    doubled = losses.detach() * 1.0
    values = doubled.numpy()
    values *= 2.0
    return doubled


@seen
def as_a_list_written_over(losses):
    values = losses.tolist()
    values.append(values.pop(0) + 1.0)
    return torch.tensor(values, dtype=losses.dtype)


@seen
def as_lists_in_a_list_written_over(losses):
    values = torch.stack([losses, losses + 1.0]).tolist()
    values[0].append(values[0].pop(0) * 2.0)
    return torch.tensor(values, dtype=losses.dtype).sum(0)


@seen
def entries_without_recording(losses):
    seen = torch.ones_like(losses)
    with torch.no_grad():
        seen[:] = losses
        seen[:2] = losses[2:4]
    return seen


@seen
def views_without_recording(losses):
    with torch.no_grad():
        parts = list(losses)
        seen, _ = losses.split([len(losses), 0])
    return torch.stack(parts) + seen


@seen
def into_a_given_tensor(losses):
    seen = torch.empty_like(losses)
    with torch.no_grad():
        torch.exp(losses, out=seen)
    return seen


@seen
def in_a_moving_average(losses):
    with torch.no_grad():
        average = torch.zeros_like(losses)
        average.mul_(0.9).add_(losses, alpha=0.1)
    return losses - average


def loss(function):
    LOSSES[function.__name__] = function
    return function


@loss
def a_teacher(model, meta, batch):
    with torch.no_grad():
        teacher = model(batch[0]).softmax(1)
    losses = F.cross_entropy(model(batch[0]), teacher, reduction="none")
    return (meta(losses) * losses).mean()


@loss
def balanced_assignments(model, meta, batch):
    outputs = model(batch[0])
    with torch.no_grad():
        plan = torch.exp(outputs / 0.5).t()
        plan /= plan.sum()
        for _ in range(3):
            plan /= plan.sum(1, keepdim=True)
            plan /= plan.sum(0, keepdim=True)
        plan = plan.t()
    losses = -(plan * F.log_softmax(outputs, 1)).sum(1)
    return (meta(losses) * losses).mean()


@loss
def straight_through_gumbel(model, meta, batch):
    outputs = model(batch[0])
    chosen = F.gumbel_softmax(outputs, hard=True)
    return (meta(cross_entropies(model, batch)) * (chosen * outputs).sum(1)).mean()


@loss
def its_own_labels(model, meta, batch):
    outputs = model(batch[0])
    losses = F.cross_entropy(outputs, outputs.argmax(1), reduction="none")
    return (meta(cross_entropies(model, batch)) * losses).mean()


@loss
def a_norm_by_power_iteration(model, meta, batch):
    weight = model[0].weight
    with torch.no_grad():
        u = weight.new_ones(len(weight))
        for _ in range(2):
            v = F.normalize(weight.t() @ u, dim=0)
            u = F.normalize(weight @ v, dim=0)
    losses = cross_entropies(model, batch)
    return (meta(losses / (u @ (weight @ v))) * losses).mean()


@loss
def a_gradient_without_a_graph(model, meta, batch):
    losses = cross_entropies(model, batch)
    (slope,) = torch.autograd.grad(losses.mean(), model[0].weight, retain_graph=True)
    return (meta(losses) * losses).mean() * slope.norm()


@loss
def a_gradient_with_its_graph(model, meta, batch):
    losses = cross_entropies(model, batch)
    (slope,) = torch.autograd.grad(losses.mean(), model[0].weight, create_graph=True)
    return (meta(losses) * losses).mean() + slope.square().sum() * meta.log_penalty.exp()


@loss
def a_hook_that_looks_on(model, meta, batch):
    outputs = model(batch[0]) * meta.log_penalty.exp()
    outputs.register_hook(lambda gradient: None)
    losses = F.cross_entropy(outputs, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@loss
def under_checkpointing(model, meta, batch):
    def block(inputs):
        hidden = model(inputs)
        return F.relu(hidden) * hidden.detach().exp()

    outputs = torch.utils.checkpoint.checkpoint(block, batch[0], use_reentrant=False)
    losses = F.cross_entropy(outputs, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@loss
def an_average_set_by_data(model, meta, batch):
    losses = cross_entropies(model, batch)
    average = model[1].running_mean
    average.data = 0.5 * average + 0.5 * model[0](batch[0]).mean(0)
    return (meta(losses) * losses).mean() * average.exp().sum()


@loss
def a_module_with_backward_hooks(model, meta, batch):
    handles = [part.register_full_backward_hook(lambda *_: None) for part in model[1:]]
    losses = cross_entropies(model, batch)
    for handle in handles:
        handle.remove()
    return (meta(losses) * losses).mean()


def refused(message):
    def keep(function):
        REFUSED[function.__name__] = (function, message)
        return function

    return keep


@refused("a hook on a tensor, a node")
def a_hook_that_scales(model, meta, batch):
    outputs = model(batch[0])
    outputs.register_hook(lambda gradient: 0.1 * gradient)
    losses = F.cross_entropy(outputs, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@refused("hides it by .data")
def a_write_by_data(model, meta, batch):
    weight = model[0].weight * 1.0
    weight.data.clamp_(-0.1, 0.1)
    losses = cross_entropies(model, batch) * weight.sum()
    return (meta(losses) * losses).mean()


@refused("hides it by .data")
def a_write_without_recording(model, meta, batch):
    weight = model[0].weight * 1.0
    with torch.no_grad():
        weight.clamp_(-0.1, 0.1)
    losses = cross_entropies(model, batch) * weight.sum()
    return (meta(losses) * losses).mean()


@refused("hides it by .data")
def a_value_set_by_data(model, meta, batch):
    outputs = model(batch[0])
    rounded = outputs * 1.0
    rounded.data = outputs.detach().round()
    losses = F.cross_entropy(rounded, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@refused("or NumPy")
def a_write_by_numpy(model, meta, batch):
    outputs = model(batch[0]) * 1.0
    values = outputs.detach().numpy()
    np.clip(values, -0.1, 0.1, out=values)
    losses = F.cross_entropy(outputs, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@refused("or NumPy")
def a_write_by_force(model, meta, batch):
    outputs = model(batch[0]) * 1.0
    outputs.numpy(force=True)[:, 0] = 0.0
    losses = F.cross_entropy(outputs, batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@refused("fake_quantize_per_tensor_affine")
def a_quantizer_of_torch(model, meta, batch):
    outputs = torch.fake_quantize_per_tensor_affine(model(batch[0]).float(), 0.1, 0, -128, 127)
    losses = F.cross_entropy(outputs.double(), batch[1], reduction="none")
    return (meta(losses) * losses).mean()


@refused(r"\(detach was not called again\)")
def a_constant_of_the_first_pass(model, meta, batch):
    losses = cross_entropies(model, batch)
    model.calls = getattr(model, "calls", 0) + 1
    seen = losses.detach() if model.calls % 2 else losses
    return (meta(seen) * losses).mean()


@refused("does other things when it is evaluated again")
def another_number_of_constants(model, meta, batch):
    losses = cross_entropies(model, batch)
    model.calls = getattr(model, "calls", 0) + 1
    for _ in range(model.calls):
        seen = losses.detach()
    return (meta(seen) * losses).mean()


def case_of(train_loss, inner=None):
    case = bank.small_net()
    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    return dataclasses.replace(case, problem=problem, inner=inner or case.inner)


def relative_error(result, expected):
    one, other = (
        torch.cat([g.flatten() for g in each.gradient.values()]) for each in (result, expected)
    )
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", LOSSES)
def test_is_a_constant_of_the_difference(name):
    case = case_of(LOSSES[name])
    state = case.state
    for estimator, limit in ((FiniteDifference(), OneStep()), (SAMA(), OneStep(lookahead=False))):
        result, exact = case.call(estimator, state), case.call(limit, state)
        assert relative_error(result, exact) < 1e-7
        assert float(result.details["difference_error"]) < 1e-2


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "a_hook_that_looks_on"])
def test_is_common_to_the_candidates_of_guided_evograd(name):
    case = case_of(LOSSES[name], mt.inner.SGD(lr=1.0))
    state = case.state
    guided = GuidedEvoGrad(1e-5, 5.0, rescale=1.0)
    assert relative_error(case.call(guided, state), case.call(OneStep(False), state)) < 2e-3


@pytest.mark.parametrize("estimator", [FiniteDifference(), SAMA()], ids=["DARTS", "SAMA"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_an_error(name, estimator):
    train_loss, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        case_of(train_loss).call(estimator)


@pytest.mark.parametrize("name", ["a_write_by_force", "a_value_set_by_data"])
def test_hidden_writes_are_errors_where_all_is_held(name):
    train_loss, message = REFUSED[name]
    guided = GuidedEvoGrad(1e-5, 5.0)
    with pytest.raises(UnsupportedError, match=message):
        case_of(train_loss).call(guided)


def test_what_is_kept_has_no_graph():
    held = HeldConstants()
    x = torch.ones(2, requires_grad=True) * 2
    cells = [held.keep(x), held.keep(x.detach())]
    assert not any(cell.tensor.requires_grad for cell in cells)
    assert [cell.tensor.data_ptr() for cell in cells] == [x.data_ptr()] * 2
    held.before_write(x)
    x.data.mul_(3.0)
    assert [cell.tensor.tolist() for cell in cells] == [[2.0, 2.0]] * 2
    held.check_versions()


def test_a_sparse_tensor_is_kept():
    held = HeldConstants()
    cell = held.keep(torch.eye(2).to_sparse())
    held.before_write(cell.tensor)
    assert cell.tensor.to_dense().tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_caches_that_the_first_pass_fills():
    cache = []

    def train_loss(model, meta, batch):
        if not cache:
            cache.append(torch.arange(1.0, 11.0).double().relu().detach() / 10)
        losses = F.relu(cross_entropies(model, batch)) * cache[0]
        return (meta(losses.detach()) * losses).mean()

    case = case_of(train_loss)
    state = case.state
    result = case.call(FiniteDifference(), state)
    assert relative_error(result, case.call(OneStep(), state)) < 1e-7


def test_a_value_that_is_changed_in_place_later_is_held_as_it_was():
    def train_loss(model, meta, batch):
        hidden = model(batch[0]) * 1.0
        seen = hidden.detach()
        kept = seen.sum(1)
        hidden = nn.functional.relu(hidden + 0.1, inplace=True)
        with torch.no_grad():
            mask = hidden * 1.0
            before = mask.sum(1)
            mask.mul_(3.0).clamp_(max=1.0)
        losses = F.cross_entropy(hidden * mask, batch[1], reduction="none") + kept + before
        return (meta(losses) * losses).mean()

    case = case_of(train_loss)
    state = case.state
    assert relative_error(case.call(SAMA(), state), case.call(OneStep(False), state)) < 1e-7


def test_what_is_written_over_unseen_is_an_error():
    held = HeldConstants()
    x = torch.ones(2)
    held.keep(x)
    held.check_versions()
    x.mul_(2.0)
    with pytest.raises(UnsupportedError, match="over a tensor that it has detached"):
        held.check_versions()


def test_one_value_of_several_that_was_written_over_is_told():
    held, tensor = HeldConstants(), torch.zeros(2)
    held.keep(tensor)
    held.check_versions()
    tensor.add_(1)
    held.keep(tensor)
    with pytest.raises(UnsupportedError, match="writes, in place, over a tensor"):
        held.check_versions()
