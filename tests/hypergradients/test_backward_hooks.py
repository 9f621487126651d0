"""Hooks of backward passes under estimators that take differences of losses."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import Node, saved_tensors_hooks

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    SAMA,
    FiniteDifference,
    GuidedEvoGrad,
    OneStep,
    backward_hooks,
)
from metatoolkit.hypergradients.backward_hooks import CheckedNode, checked_hook
from metatoolkit.testing import bank
from tests.hypergradients.held_losses import relative_error
from tests.hypergradients.test_pieces import Shift

DIFFERENCES = {
    "FiniteDifference": (FiniteDifference, OneStep),
    "SAMA": (SAMA, lambda: OneStep(False)),
    "GuidedEvoGrad": (
        lambda: GuidedEvoGrad(1e-5, 5.0, rescale=1.0),
        lambda: OneStep(False),
    ),
}
differences = pytest.mark.parametrize(
    ("make", "exact"), DIFFERENCES.values(), ids=DIFFERENCES.keys()
)


def case(train_loss=None, prepare=None):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    if prepare is not None:
        prepare(model)

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    other = bank.small_net()
    problem = mt.BilevelProblem(model, Shift(), train_loss or plain, valid_loss)
    return dataclasses.replace(other, problem=problem, inner=mt.inner.SGD(lr=1.0))


def plain(model, meta, batch):
    return F.cross_entropy(model(batch[0] + meta.value), batch[1])


def with_hidden(register):
    def loss(model, meta, batch):
        hidden = model[1](model[0](batch[0] + meta.value))
        register(hidden)
        return F.cross_entropy(model[2](hidden), batch[1])

    return case(loss)


def with_hooks(pack, unpack):
    def loss(model, meta, batch):
        with saved_tensors_hooks(pack, unpack):
            return plain(model, meta, batch)

    return case(loss)


def on_the_cpu(model, meta, batch):
    with torch.autograd.graph.save_on_cpu():
        return plain(model, meta, batch)


def doubled(grads):
    return tuple(None if g is None else 2 * g for g in grads)


def doubled_data(grad):
    grad.data.mul_(2)


def quantized(tensor):
    return (tensor * 4).round() / 4 if tensor.is_floating_point() else tensor


CHANGING = {
    "a tensor": lambda: with_hidden(lambda h: h.register_hook(lambda g: 2 * g)),
    "a tensor, in place": lambda: with_hidden(lambda h: h.register_hook(lambda g: g.mul_(2))),
    "a tensor, in its data": lambda: with_hidden(lambda h: h.register_hook(doubled_data)),
    "a node": lambda: with_hidden(lambda h: h.grad_fn.register_hook(lambda gi, go: doubled(gi))),
    "before a node": lambda: with_hidden(lambda h: h.grad_fn.register_prehook(doubled)),
    "a node that follows": lambda: with_hidden(
        lambda h: h.grad_fn.next_functions[0][0].register_prehook(doubled)
    ),
    "a module": lambda: case(
        prepare=lambda m: m[1].register_full_backward_hook(lambda _, gi, go: doubled(gi))
    ),
    "before a module": lambda: case(
        prepare=lambda m: m[1].register_full_backward_pre_hook(lambda _, go: doubled(go))
    ),
}
LOOKING = {
    "a tensor": lambda: with_hidden(lambda h: h.register_hook(lambda g: g.clone())),
    "a node": lambda: with_hidden(lambda h: h.grad_fn.register_hook(lambda gi, go: None)),
    "before a node": lambda: with_hidden(lambda h: h.grad_fn.register_prehook(lambda go: go)),
    "a module": lambda: case(
        prepare=lambda m: m[1].register_full_backward_hook(lambda _, gi, go: gi)
    ),
    "before a module": lambda: case(
        prepare=lambda m: m[1].register_full_backward_pre_hook(lambda _, go: None)
    ),
    "saved as arrays": lambda: with_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy),
    "saved on the CPU": lambda: case(on_the_cpu),
}
LOSING = {
    "in fewer digits": quantized,
    "in another order": lambda t: t.flip(0) if t.is_floating_point() else t,
    "by a function of torch": F.softsign,
}


@differences
@pytest.mark.parametrize("build", CHANGING.values(), ids=CHANGING.keys())
def test_hooks_that_change_gradients_are_refused(build, make, exact):
    made = build()
    with pytest.raises(UnsupportedError, match="a hook on a tensor, a node of the graph or"):
        made.call(make(), made.state)
    # What differentiates the loss as it is takes them as they are.
    made.call(exact(), made.state)


@differences
@pytest.mark.parametrize("build", LOOKING.values(), ids=LOOKING.keys())
def test_hooks_that_change_nothing_are_called(build, make, exact):
    made, bare = build(), case()
    expected = bare.call(exact(), bare.state)
    assert relative_error(made.call(make(), made.state), expected) < 1e-6


@differences
@pytest.mark.parametrize("pack", LOSING.values(), ids=LOSING.keys())
def test_what_comes_back_changed_is_refused(pack, make, exact):
    made = with_hooks(pack, lambda tensor: tensor)
    with pytest.raises(UnsupportedError, match="hooks for saved tensors give a backward pass"):
        made.call(make(), made.state)


@differences
def test_hooks_around_a_call_are_looked_at_too(make, exact):
    made, bare = case(), case()
    expected = bare.call(exact(), bare.state)
    with saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        found = made.call(make(), made.state)
    assert relative_error(found, expected) < 1e-6
    made = case()
    with (
        saved_tensors_hooks(quantized, lambda tensor: tensor),
        pytest.raises(UnsupportedError, match="hooks for saved tensors"),
    ):
        made.call(make(), made.state)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@differences
def test_hooks_on_all_modules_are_refused_likewise(make, exact):
    made = case()
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda module, gi, go: doubled(gi) if isinstance(module, nn.Tanh) else None
    )
    try:
        with pytest.raises(UnsupportedError, match="changes the gradient"):
            made.call(make(), made.state)
    finally:
        handle.remove()


def test_a_hook_may_look_and_not_change():
    gradient = torch.tensor([1.0, 2.0])
    assert checked_hook(lambda g: None)(gradient) is None
    assert torch.equal(checked_hook(lambda g: g.clone())(gradient), gradient)
    assert checked_hook(lambda gi, go: (None, *go))((None, gradient), (gradient,))[0] is None
    for changing in (
        lambda g: g * 0.5,
        lambda g: g.mul_(2.0),
        doubled_data,
        lambda g: g[:1],
        lambda g: (g, g),
        lambda g: (None,),
    ):
        with pytest.raises(UnsupportedError, match="changes the gradient"):
            checked_hook(changing)(gradient.clone())
    with pytest.raises(UnsupportedError, match="changes the gradient"):
        checked_hook(lambda gi, go: go)((None,), (gradient,))


def test_a_checked_node_passes_for_its_node():
    leaf = torch.tensor(2.0, requires_grad=True)
    node = (leaf * 3).grad_fn
    checked = CheckedNode(node)
    assert isinstance(checked, Node) and checked.name() == node.name() == "MulBackward0"
    assert checked == node and checked == CheckedNode(node) and hash(checked) == hash(node)
    assert checked != CheckedNode((leaf * 3).grad_fn)
    following = checked.next_functions
    assert [place for _, place in following] == [place for _, place in node.next_functions]
    assert following[0][0].variable is leaf and following[1][0] is None


def test_what_is_saved_is_told_by_its_bits():
    values = torch.tensor([[1.0, 0.0], [-2.5, 3.0]])
    kinds = [values, values.double(), values.half(), values.bool(), values.to(torch.complex128)]
    kinds += [values[:, :1], torch.zeros(()), torch.zeros(0), values.to_sparse().double() * 2]
    digests = [backward_hooks._digest(tensor) for tensor in kinds]
    assert len(set(digests)) == len(kinds)
    assert digests == [backward_hooks._digest(tensor.clone()) for tensor in kinds]
    for tensor in (values, values.to_sparse(), values.to(torch.complex64).conj()):
        changed = tensor * (1 + 2.0**-23)
        assert backward_hooks._digest(changed) != backward_hooks._digest(tensor)
    for size in (2, 3, 7, 12):
        line = torch.arange(1.0, size + 1)
        for other in (line.flip(0), line.roll(1)):
            assert backward_hooks._digest(other) != backward_hooks._digest(line)


def test_gradients_that_are_not_numbers_may_be_returned():
    gradient = torch.tensor([math.nan, 1.0])
    assert checked_hook(lambda g: g.clone())(gradient).isnan()[0]


def test_hooks_of_torch_that_lose_nothing_are_left_as_they_are():
    own = torch.autograd.graph.save_on_cpu()
    pair = own.pack_hook, own.unpack_hook
    assert backward_hooks._checked_pair(*pair) == pair
    for pack in (quantized, F.softsign):
        checked = backward_hooks._checked_pair(pack, lambda tensor: tensor)
        assert pack not in checked
        with pytest.raises(UnsupportedError, match="hooks for saved tensors"):
            checked[1](checked[0](torch.tensor([0.3, 1.7])))
