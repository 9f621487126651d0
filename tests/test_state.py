"""The inner state as a value, and batches as trees."""

import collections
import dataclasses

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from metatoolkit.state import InnerState, describe, require_grad, tree_map
from metatoolkit.testing import bank


def stepped():
    case = bank.small_net()
    return case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )[0]


def test_tensors_and_back():
    state = stepped()
    tensors = [2 * tensor for tensor in state.tensors()]
    other = state.with_tensors(tensors)
    assert all(one is two for one, two in zip(other.tensors(), tensors, strict=True))
    assert other.optimizer.keys() == state.optimizer.keys()
    assert list(other.parameters) == list(state.parameters)
    assert other.buffers is state.buffers and other.step == state.step == 1


def test_detach_shares_memory_and_clone_does_not():
    state = stepped()
    for one, two, three in zip(
        state.tensors(), state.detach().tensors(), state.clone().tensors(), strict=True
    ):
        assert one.data_ptr() == two.data_ptr() != three.data_ptr()


def test_detach_and_clone_cut_the_graph():
    state = stepped()
    tensors = [tensor.clone().requires_grad_() * 2 for tensor in state.tensors()]
    buffers = {n: b.double().requires_grad_() * 3 for n, b in state.buffers.items()}
    grown = dataclasses.replace(state.with_tensors(tensors), buffers=buffers)
    for cut in (grown.detach(), grown.clone()):
        held = [*cut.tensors(), *cut.buffers.values()]
        assert not any(tensor.requires_grad for tensor in held)
        assert list(cut.buffers) == list(state.buffers)
        for one, other in zip(cut.buffers.values(), buffers.values(), strict=True):
            assert torch.equal(one, other)
    assert all(tensor.requires_grad for tensor in grown.tensors())
    for one, other in zip(grown.buffers.values(), grown.clone().buffers.values(), strict=True):
        assert one.data_ptr() != other.data_ptr()


def test_a_map_is_applied_to_every_tensor_once():
    state = stepped()
    seen = []
    doubled = state.map(lambda tensor: seen.append(tensor) or 2 * tensor)
    held = [*state.tensors(), *state.buffers.values()]
    assert len(seen) == len(held) and all(a is b for a, b in zip(seen, held, strict=True))
    for name, tensor in state.parameters.items():
        assert torch.equal(doubled.parameters[name], 2 * tensor)
        velocity = state.optimizer["velocity"][name]
        assert torch.equal(doubled.optimizer["velocity"][name], 2 * velocity)
    assert (doubled.step, doubled.key) == (state.step, state.key)


def test_to_leaves_integers_alone():
    state = stepped().to(torch.float32)
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32}
    assert state.buffers["model.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("meta",), {}),
        ((), {"device": "meta"}),
        ((), {"device": torch.device("meta"), "dtype": torch.float32}),
        (("meta", torch.float32, True), {"copy": True}),
        ((torch.ones(1, device="meta", dtype=torch.float64),), {}),
    ],
)
def test_to_moves_integer_buffers_with_the_others(args, kwargs):
    state = stepped().to(*args, **kwargs)
    tensors = [*state.tensors(), *state.buffers.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert state.buffers["model.1.num_batches_tracked"].dtype == torch.int64


def test_state_dict_round_trip(tmp_path):
    state = stepped()
    torch.save(state.state_dict(), tmp_path / "state.pt")
    again = InnerState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (again.step, again.key) == (state.step, state.key)
    pairs = zip(
        [*state.tensors(), *state.buffers.values()],
        [*again.tensors(), *again.buffers.values()],
        strict=True,
    )
    assert all(torch.equal(one, two) for one, two in pairs)


Pair = collections.namedtuple("Pair", "inputs targets")


@pytest.mark.parametrize(
    "batch",
    [torch.ones(2), (torch.ones(2), 3), {"a": [torch.ones(2), "text"]}, Pair(torch.ones(1), None)],
)
def test_any_tree_is_a_batch(batch):
    doubled = tree_map(lambda tensor: 2 * tensor, batch)
    assert type(doubled) is type(batch)
    leaves = torch.utils._pytree.tree_leaves(doubled)
    assert float(next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))[0]) == 2


@dataclasses.dataclass(frozen=True)
class Example:
    inputs: torch.Tensor
    targets: object = None


class Tagged(dict):
    pass


class Listed(list):
    pass


class Tupled(tuple):
    pass


@pytest.mark.parametrize(
    ("batch", "read"),
    [
        (Example(torch.ones(2)), lambda b: b.inputs),
        ([Example(torch.ones(2), {"deep": torch.ones(2)})], lambda b: b[0].targets["deep"]),
        (Tagged(a=torch.ones(2)), lambda b: b["a"]),
        (collections.UserDict(a=[torch.ones(2)]), lambda b: b["a"][0]),
        (Listed([torch.ones(2)]), lambda b: b[0]),
        (Tupled((3, [torch.ones(2)])), lambda b: b[1][0]),
        (pack_sequence([torch.ones(2), torch.ones(1)]), lambda b: b.data),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_pytorch_takes_for_a_leaf_is_walked_through(batch, read):
    doubled = tree_map(lambda t: 2 * t if t.is_floating_point() else t, batch)
    assert type(doubled) is type(batch)
    assert bool((read(doubled) == 2).all()) and bool((read(batch) == 1).all())


def test_objects_stay_unless_somebody_takes_them():
    batch = [None, 3, "text", Example(torch.ones(1), object())]
    same = tree_map(lambda tensor: tensor, batch)
    assert same[:3] == batch[:3] and same[3].targets is batch[3].targets
    named = tree_map(lambda tensor: tensor, batch, on_object=lambda value: type(value).__name__)
    assert named[:3] == ["NoneType", "int", "str"] and named[3].targets == "object"
    # One that goes as a whole is not looked into.
    whole = tree_map(
        lambda tensor: 2 * tensor,
        [Example(torch.ones(1)), torch.ones(1)],
        own=lambda value: isinstance(value, Example),
        on_object=lambda value: "whole",
    )
    assert whole[0] == "whole" and float(whole[1]) == 2


def test_description_of_a_batch():
    assert describe((torch.ones(4, 5), torch.arange(4), "x")) == "(4, 5) float32, (4,) int64, str"
    assert describe(()) == "empty"
    assert describe({"x": Example(torch.ones(2), None)}) == "(2,) float32, NoneType"


def test_leaves_that_require_a_gradient_share_memory_and_the_others_stay():
    own = torch.ones(2, requires_grad=True) * 2
    given = {"own": own, "plain": torch.ones(3), "count": torch.arange(3)}
    found = require_grad(given)
    assert found["own"] is own and found["count"] is given["count"]
    assert found["plain"].requires_grad and found["plain"].is_leaf
    assert found["plain"].data_ptr() == given["plain"].data_ptr()
    assert not given["plain"].requires_grad


def test_steps_that_a_parameter_missed_are_not_its_own():
    state = dataclasses.replace(stepped(), step=7, missed={"0.weight": 3})
    assert state.steps_of("0.weight") == 4 and state.steps_of("0.bias") == 7
    assert stepped().steps_of("0.weight") == 1 and stepped().missed == {}
    # What it missed goes with the state.
    for other in (state.detach(), state.clone(), state.to(torch.float32), state.map(torch.neg)):
        assert other.missed == state.missed and other.step == 7
    assert InnerState.from_state_dict(state.state_dict()).missed == state.missed


@pytest.mark.parametrize("copies", [False, True])
def test_to_copies_only_where_it_is_asked_for(copies):
    state = stepped()
    moved = [
        state.to("cpu", torch.float64, False, copies),
        state.to(torch.device("cpu"), False, copies),
        state.to(torch.float64, copy=copies),
        state.to(state.parameters["0.weight"], copy=copies),
    ]
    for other in moved:
        pairs = zip(state.tensors(), other.tensors(), strict=True)
        assert all((one is not two) == copies and torch.equal(one, two) for one, two in pairs)
        name = "model.1.num_batches_tracked"
        assert (other.buffers[name] is not state.buffers[name]) == copies


def test_complex_tensors_become_complex_ones():
    numbers = {"w": torch.ones(2, dtype=torch.complex128), "x": torch.ones(2)}
    state = InnerState(numbers, {}, {}, 0, 0)
    for dtype, expected in ((torch.float32, torch.complex64), (torch.float64, torch.complex128)):
        other = state.to(dtype)
        assert [t.dtype for t in other.parameters.values()] == [expected, dtype]
    assert state.to("cpu").parameters["w"].dtype == torch.complex128
