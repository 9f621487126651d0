"""Whether modules still hold the objects that they held."""

import pytest
import torch
from torch import nn

from metatoolkit.stateless.content import Content


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))


def freeze(model):
    model[0].weight.requires_grad_(False)


def tie(model):
    model[2].weight = nn.Parameter(model[2].weight.detach())


def fill(model):
    model[2].bias = nn.Parameter(torch.zeros(3))


def add_buffer(model):
    model[2].register_buffer("more", torch.zeros(1))


def exchange_buffer(model):
    model[1].running_mean = torch.zeros(3)


def drop(model):
    del model[2]


def exchange_module(model):
    model[2] = nn.Linear(3, 3, bias=False)


def rename(model):
    model[2]._parameters = {"kernel": model[2].weight}


def exchange_store(model):
    model[0]._parameters = dict(model[0]._parameters)


@pytest.mark.parametrize(
    "change",
    [
        freeze,
        tie,
        fill,
        add_buffer,
        exchange_buffer,
        drop,
        exchange_module,
        rename,
        exchange_store,
    ],
)
def test_a_change_is_seen(change):
    model, meta = network(), nn.Linear(1, 1)
    content = Content((model, meta))
    assert content.is_present()
    change(model)
    assert not content.is_present()
    assert Content((model, meta)).is_present()


def test_values_and_modes_are_no_change():
    model = network()
    content = Content((model, model[0]))
    with torch.no_grad():
        model[0].weight.add_(1)
    model.eval()
    model(torch.ones(2, 2))
    assert content.is_present() and content.hooked() is None


def test_hooks():
    model = network()
    content = Content([model])
    handle = model[2].weight.register_hook(lambda gradient: None)
    assert content.hooked() is model[2].weight
    handle.remove()
    handle = model[0].bias.register_post_accumulate_grad_hook(lambda tensor: None)
    assert content.hooked() is model[0].bias
    model[0].bias.requires_grad_(False)
    assert content.hooked() is None
