"""An evaluation of a problem reads what it is given, and leaves all else as it was."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.testing import bank


def tensors_of(problem):
    return {
        "parameters": problem.parameters(),
        "buffers": problem.buffers(),
        "state": mt.inner.SGD(lr=0.1).init(problem).parameters,
    }


def test_what_is_read_shares_no_memory_with_the_modules():
    case = bank.small_net()
    problem = case.problem
    state, _ = case.inner.step(
        problem, case.state, problem.meta_parameters(), case.train_batches[0]
    )
    kept = tensors_of(problem)
    copies = {kind: {n: t.clone() for n, t in held.items()} for kind, held in kept.items()}
    # Loading writes into the modules in place: what was saved before must not move.
    problem.load(state)
    for kind, held in kept.items():
        for name, tensor in held.items():
            assert torch.equal(tensor, copies[kind][name]), (kind, name)
            assert not tensor.requires_grad
    # Nor do the modules take over the memory of the state.
    before = state.clone()
    with torch.no_grad():
        for tensor in [*problem.model.parameters(), *problem.model.buffers()]:
            tensor.zero_()
    pairs = zip(state.tensors(), before.tensors(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert all(torch.equal(b, before.buffers[n]) for n, b in state.buffers.items())
    assert float(before.buffers["model.1.running_var"].sum()) > 0


def test_meta_parameters_are_the_live_ones_and_leaves_share_their_memory():
    problem = bank.tied().problem
    live, leaves = problem.meta_parameters(), problem.meta_leaves()
    assert list(live) == list(leaves) == ["features", "direct", "unused"]
    for name, parameter in live.items():
        assert parameter is getattr(problem.meta, name)
        assert leaves[name] is not parameter and leaves[name].requires_grad
        assert leaves[name].is_leaf and leaves[name].data_ptr() == parameter.data_ptr()


def test_evaluations_use_all_that_they_are_given():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("offset", torch.tensor(3.0))

    class Meta(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(5.0))
            self.register_buffer("calls", torch.tensor(0.0))

    def loss(model, meta, batch):
        meta.calls += 1
        return model.weight * batch + 10 * model.offset + 100 * meta.rate + 1000 * meta.calls

    problem = mt.BilevelProblem(Net(), Meta(), loss, lambda *a: 2 * loss(*a))
    assert problem.buffer_names == ["model.offset", "meta.calls"]
    given = (
        {"weight": torch.tensor(7.0)},
        {"rate": torch.tensor(1.0)},
        {"model.offset": torch.tensor(4.0), "meta.calls": torch.tensor(1.0)},
        3.0,
        0,
    )
    value, after = problem.evaluate_train(*given)
    assert float(value) == 21 + 40 + 100 + 2000
    assert {n: float(b) for n, b in after.items()} == {"model.offset": 4.0, "meta.calls": 2.0}
    assert float(given[2]["meta.calls"]) == 1.0 and not after["meta.calls"].requires_grad
    assert float(problem.evaluate_valid(*given)) == 2 * float(value)
    # Everything is as it was.
    assert [float(t) for t in problem.model.state_dict().values()] == [2.0, 3.0]
    assert [float(t) for t in problem.meta.state_dict().values()] == [5.0, 0.0]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_each_module_gets_its_own_mode_back(mode):
    case = bank.small_net(mode)
    problem = case.problem
    problem.model.train()
    problem.model[1].eval()
    problem.meta.eval()
    flags = [m.training for root in (problem.model, problem.meta) for m in root.modules()]
    seen = []
    problem.valid_loss = lambda model, meta, batch: (
        seen.append({m.training for root in (model, meta) for m in root.modules()})
        or model(batch[0]).square().mean()
    )
    arguments = (problem.parameters(), problem.meta_parameters(), problem.buffers())
    problem.evaluate_valid(*arguments, case.valid_batch, 0)
    assert seen == [{mode == "train"}]
    with pytest.raises(RuntimeError):
        problem.evaluate_valid(*arguments, (torch.ones(2, 7).double(), None), 0)
    after = [m.training for root in (problem.model, problem.meta) for m in root.modules()]
    assert after == flags


def test_initial_values_take_the_type_of_the_parameters():
    case = bank.started()
    meta = {"value": torch.tensor(0.5, dtype=torch.float32, requires_grad=True)}
    values = case.problem.initial_parameters(meta)
    assert values["value"].dtype == torch.float64 and values["value"].requires_grad
    assert case.problem.begins_with_meta(case.state)
    plain = bank.ridge()
    assert plain.problem.initial_parameters({}) == {}
    assert not plain.problem.begins_with_meta(plain.state)
    later, _ = case.inner.step(case.problem, case.state, case.problem.meta_parameters(), 1.0)
    assert not case.problem.begins_with_meta(later)


def test_recurrent_weights_are_exchanged_within_a_pass_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, batch_first=True)).double()
    seen = []

    def loss(model, meta, batch):
        seen.append([weight.detach().clone() for weight in model[1]._flat_weights])
        return meta.value * model(batch)[0].square().mean()

    problem = mt.BilevelProblem(model, bank.Value(1.0), loss, loss)
    batch = torch.randn(2, 5, 3, dtype=torch.float64)
    halves = {name: p / 2 for name, p in problem.parameters().items()}
    expected = model(batch)[0].detach()
    live = [weight.detach().clone() for weight in model[1]._flat_weights]
    for _ in range(2):
        value = problem.evaluate_valid(halves, {}, {}, batch, 0)
    assert all(torch.equal(one, two / 2) for one, two in zip(seen[0], live, strict=True))
    # The passes ended with the module's own weights in its list.
    own = [getattr(model[1], name) for name in model[1]._flat_weights_names]
    assert all(one is two for one, two in zip(model[1]._flat_weights, own, strict=True))
    assert torch.equal(model(batch)[0], expected)
    copy = nn.LSTM(3, 4, batch_first=True).double()
    linear = nn.Linear(3, 3).double()
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(halves[f"1.{name}"])
        for name, parameter in linear.named_parameters():
            parameter.copy_(halves[f"0.{name}"])
        right = copy(linear(batch))[0].square().mean()
    assert float(value.detach()) == pytest.approx(float(right), rel=1e-12)


def test_tied_tensors_of_model_and_meta_are_put_back_as_they_were():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.two = nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight

    model, meta = Net().double(), bank.Value(1.0)
    meta.inside = model.two
    meta.inside.requires_grad_(False)
    model.head = nn.Linear(2, 1).double()

    def loss(model, meta, batch):
        return meta.value * model.head(model.two(model.one(batch))).square().mean()

    problem = mt.BilevelProblem(model, meta, loss, loss)
    before = [id(p) for p in (model.one.weight, model.two.weight, meta.inside.weight)]
    doubled = {name: 2 * p for name, p in problem.parameters().items()}
    for _ in range(2):
        problem.evaluate_valid(doubled, {}, {}, torch.ones(3, 2).double(), 0)
    after = [id(p) for p in (model.one.weight, model.two.weight, meta.inside.weight)]
    assert before == after and len(set(after)) == 1


def test_a_buffer_of_another_shape_is_copied_into_the_modules():
    problem = bank.small_net().problem
    given = torch.arange(5.0, dtype=torch.float64)
    problem.load_buffers({"model.1.running_mean": given})
    held = problem.model[1].running_mean
    assert held.tolist() == given.tolist() and held.data_ptr() != given.data_ptr()


def test_a_buffer_that_is_replaced_takes_no_graph_along():
    problem = bank.small_net().problem
    given = torch.arange(5.0, dtype=torch.float64, requires_grad=True)
    problem.load_buffers({"model.1.running_mean": given * 2})
    held = problem.model[1].running_mean
    assert not held.requires_grad and held.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    problem.load_buffers({"model.1.running_var": torch.full_like(given, 3.0)})
    assert problem.model[1].running_var.tolist() == [3.0] * 5


def test_a_buffer_that_is_replaced_stays_on_the_device_of_the_module():
    model = nn.Linear(1, 1)
    model.register_buffer("far", torch.ones(2, device="meta"))

    def loss(model, meta, batch):
        return model.weight.sum() * meta.value

    problem = mt.BilevelProblem(model, bank.Value(1.0), loss, loss)
    problem.load_buffers({"model.far": torch.ones(3)})
    assert model.far.device.type == "meta" and model.far.shape == (3,)
