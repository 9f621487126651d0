"""Layers: which are transformed, by which networks."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError, ShapeError, UnsupportedError
from metatoolkit.metaparameters.representation_transform import (
    RepresentationTransform,
    find_layers,
)
from tests.metaparameters.transforms import randomized


def test_all_layers_weigh_the_same_at_first():
    torch.testing.assert_close(RepresentationTransform(4, layers=3).weights, torch.ones(3) / 3)
    single = RepresentationTransform(1)
    assert single.weights.tolist() == [1.0] and single.alpha is None
    assert single.networks[0][0].out_features == 1


def test_what_is_active_is_so_in_the_body_alone():
    model = torch.nn.ModuleDict({"stack": torch.nn.ModuleList([_block(), _block()])})
    transform = randomized(RepresentationTransform.attach(model, layers=[0]))
    hidden = torch.ones(2, 3, 4)
    first = model["stack"][0]
    off = first(hidden)
    with transform.active():
        on = first(hidden)
        with pytest.raises(ZeroDivisionError), transform.active(torch.tensor([True, False])):
            half = first(hidden)
            raise ZeroDivisionError
        assert torch.equal(first(hidden), on)
    assert torch.equal(first(hidden), off)
    torch.testing.assert_close(half, torch.stack([on[0], off[1]]))
    transform.remove()
    transform.remove()
    with transform.active():
        assert torch.equal(first(hidden), off)


def _block():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))


def test_what_is_no_number_of_a_layer_is_refused():
    model = torch.nn.ModuleDict({"stack": torch.nn.ModuleList([_block(), _block()])})
    with pytest.raises(ConfigurationError, match="layers holds True"):
        RepresentationTransform.attach(model, layers=[True])
    with pytest.raises(ConfigurationError, match=r"layers is \[0, -2\]; at least one is needed"):
        RepresentationTransform.attach(model, layers=[0, -2])
    mixed = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    with pytest.raises(UnsupportedError, match="there is none"):
        RepresentationTransform.attach(torch.nn.ModuleDict({"stack": mixed}))
    # Of lists within lists it is the outer one.
    outer = torch.nn.ModuleList([torch.nn.ModuleList([_block(), _block()]) for _ in range(2)])
    model = torch.nn.ModuleDict({"deep": outer})
    assert find_layers(model) is outer


def test_the_last_layer_is_transformed_unless_others_are_named():
    stack = torch.nn.ModuleList([_block() for _ in range(3)])
    transform = randomized(RepresentationTransform.attach(torch.nn.ModuleDict({"stack": stack})))
    hidden = torch.ones(2, 3, 4)
    off = [layer(hidden) for layer in stack]
    with transform.active():
        on = [layer(hidden) for layer in stack]
    assert [torch.equal(a, b) for a, b in zip(off, on, strict=True)] == [True, True, False]
    model = torch.nn.ModuleDict({"stack": stack})
    assert RepresentationTransform.attach(model, bottleneck=3).networks[0][0].out_features == 3


def test_states_of_any_number_of_dimensions_are_transformed():
    transform = randomized(RepresentationTransform(4))
    hidden = torch.randn(2, 3, 4)
    expected = transform(hidden)
    torch.testing.assert_close(transform(hidden[0, 0]), expected[0, 0])
    torch.testing.assert_close(transform(hidden[0]), expected[0])
    with pytest.raises(ShapeError, match=r"hidden states have shape \(\);"):
        transform(torch.tensor(1.0))


class _Tupled(torch.nn.Module):
    """A layer that returns more than its hidden states."""

    def __init__(self):
        super().__init__()
        self.block = _block()

    def forward(self, hidden):
        return self.block(hidden), "attention", 3


def test_what_a_layer_returns_beside_its_states_stays():
    stack = torch.nn.ModuleList([_Tupled(), _Tupled()])
    transform = randomized(RepresentationTransform.attach(torch.nn.ModuleDict({"stack": stack})))
    hidden, tokens = torch.ones(2, 3, 4), torch.tensor([True, False])
    off = stack[1](hidden)
    with transform.active(tokens):
        on = stack[1](hidden)
    assert on[1:] == off[1:] == ("attention", 3)
    torch.testing.assert_close(on[0], transform(off[0], 0, tokens))
    assert not torch.equal(on[0][0], off[0][0]) and torch.equal(on[0][1], off[0][1])
