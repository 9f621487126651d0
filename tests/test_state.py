"""The inner state as a value, and batches as trees."""

import collections

import pytest
import torch

from metatoolkit.state import InnerState, describe, tree_map
from tests import bank


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


def test_description_of_a_batch():
    assert describe((torch.ones(4, 5), torch.arange(4), "x")) == "(4, 5) float32, (4,) int64, str"
    assert describe(()) == "empty"
