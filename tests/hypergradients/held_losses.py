"""Losses that hold something for a constant, in every way that one can."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

import metatoolkit as mt
from metatoolkit.testing import bank

LOSSES = {}


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
