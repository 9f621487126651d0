"""States as vectors, whose parameters are read in memory of their own."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import ForwardMode
from metatoolkit.hypergradients.flat_state import FlatState
from metatoolkit.inner import SGD
from metatoolkit.testing import bank

F64 = torch.float64


def test_a_state_and_its_vectors_hold_the_same():
    case = bank.small_net()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    flat = FlatState.of(state)
    assert flat.parameters.tolist() == [x for t in state.parameters.values() for x in t.flatten()]
    for one, other in zip(flat.state.tensors(), state.tensors(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()
    speeds = {"velocity": flat.slots["velocity"] + 1}
    after = flat.moved(flat.parameters * 2, speeds, state.buffers, {"0.bias": 3})
    assert after.entry.step == state.step + 1 and after.entry.missed == {"0.bias": 3}
    for name, leaf in after.entry.parameters.items():
        assert leaf.is_leaf and leaf.requires_grad
        assert torch.equal(leaf.detach(), 2 * state.parameters[name])
        whole = after.state
        assert torch.equal(whole.optimizer["velocity"][name], state.optimizer["velocity"][name] + 1)
        assert not whole.parameters[name].requires_grad
    storages = {t.untyped_storage().data_ptr() for t in after.state.tensors()}
    assert len(storages) == len(after.state.tensors())


class Clamped(nn.Module):
    """Two layers, of which the second is clamped in place from a call on."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, batch):
        inputs, clamp = batch
        if clamp:
            self.second.weight.data.add_(0.0)
            with torch.no_grad():
                self.second.weight.clamp_(-1, 1)
        return self.second(self.first(inputs).tanh()).square().mean()


def test_a_pass_that_changes_a_parameter_in_place_is_told_by_its_name_at_any_step():
    model = Clamped().double()
    loss = lambda model, meta, batch: model(batch)  # noqa: E731
    problem = mt.BilevelProblem(model, bank.Value([0.1]), loss, loss)
    inner = SGD(lr=lambda meta, step: meta.value[0], momentum=0.5)
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    batches = [(inputs, step == 2) for step in range(3)]
    with pytest.raises(UnsupportedError, match=r"'model.second.weight' in place"):
        ForwardMode(3)(problem, inner, inner.init(problem), batches, (inputs, False))


def test_a_state_that_is_returned_shares_no_memory():
    case = bank.small_net()
    result = case.call(ForwardMode(2))
    tensors = result.state.tensors()
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
    assert not any(t.requires_grad for t in tensors)
