"""Losses whose constants cannot be held, and what is said of them."""

import numpy as np
import torch
import torch.nn.functional as F

from tests.hypergradients.held_losses import cross_entropies

REFUSED = {}


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
