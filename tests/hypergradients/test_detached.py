"""What a loss takes for a constant, against the exact one-step hypergradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import SAMA, FiniteDifference, GuidedEvoGrad, OneStep
from metatoolkit.hypergradients.detached import HeldConstants
from tests.hypergradients.held_losses import LOSSES, case_of, cross_entropies, relative_error
from tests.hypergradients.refused_losses import REFUSED

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True", "ignore:To copy construct from a tensor"
)


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
