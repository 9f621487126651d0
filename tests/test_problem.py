"""Modules as pure functions: what is exchanged, what is restored, what is refused."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError, UnusedMetaParameterError
from metatoolkit.hypergradients.detached import RecordDetached
from metatoolkit.randomness import go_to, place
from tests import bank


def squares(model, meta, batch):
    return model(batch).square().mean()


def scale():
    return bank.Value(2.0, torch.float32)


def test_inner_parameters_are_those_that_meta_does_not_own():
    case = bank.inside_model()
    assert case.problem.parameter_names == [
        "temperature",
        "first.weight",
        "first.bias",
        "last.weight",
    ]
    assert case.problem.meta_parameter_names == ["value"]


def test_frozen_parameters_are_neither_inner_nor_meta():
    case = bank.tied()
    case.problem.model.decoder.bias.requires_grad_(False)
    problem = mt.BilevelProblem(case.problem.model, case.problem.meta, squares, squares)
    assert problem.parameter_names == ["encoder.weight"]
    assert problem.meta_parameter_names == ["features", "direct", "unused"]


def test_tied_weights_are_exchanged_in_every_place():
    case = bank.tied()
    problem = case.problem
    twice = {name: 2 * p for name, p in problem.parameters().items()}
    inputs = case.valid_batch[0]
    weight, bias = twice["encoder.weight"], twice["decoder.bias"]
    expected = F.linear(torch.tanh(F.linear(inputs, weight)), weight, bias)
    expected = (expected - inputs).square().mean() + problem.meta.direct.sin().sum()
    got = problem.evaluate_valid(twice, {}, {}, case.valid_batch, 0)
    torch.testing.assert_close(got, expected)
    weight = problem.model.encoder.weight
    assert weight is problem.model.decoder.weight and isinstance(weight, nn.Parameter)


def test_meta_that_is_part_of_the_model_is_one_set_of_tensors():
    case = bank.inside_model()
    problem = case.problem
    leaves = problem.meta_leaves()
    value = problem.evaluate_valid(
        problem.parameters(), leaves, problem.buffers(), case.valid_batch, 0
    )
    (gradient,) = torch.autograd.grad(value, list(leaves.values()))
    # Not only the direct term but also what flows through the model.
    direct = 0.02 * leaves["value"].detach()
    assert float((gradient - direct).norm()) > 1e-3


def test_evaluations_move_no_buffer_and_return_new_ones():
    case = bank.small_net()
    problem = case.problem
    before = problem.buffers()
    _, after = problem.evaluate_train(
        problem.parameters(), problem.meta_parameters(), before, case.train_batches[0], 0
    )
    assert list(after) == list(before) == problem.buffer_names
    assert int(after["model.1.num_batches_tracked"]) == 1
    assert int(before["model.1.num_batches_tracked"]) == 0
    assert int(problem.model[1].num_batches_tracked) == 0


def test_what_is_exchanged_is_restored_after_an_error():
    problem = mt.BilevelProblem(nn.Linear(3, 2), scale(), squares, squares)
    weight = problem.model.weight
    with pytest.raises(RuntimeError) as caught:
        problem.evaluate_train(problem.parameters(), {}, {}, torch.ones(4, 5), 0)
    assert problem.model.weight is weight
    assert caught.value.__notes__ == [
        "while train_loss was evaluated on a batch of: (4, 5) float32"
    ]


def test_equal_keys_give_equal_masks_and_the_global_state_stays():
    case = bank.small_net()
    problem = case.problem
    arguments = (
        problem.parameters(),
        problem.meta_parameters(),
        problem.buffers(),
        case.train_batches[0],
    )
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    losses = [float(problem.evaluate_train(*arguments, key)[0].detach()) for key in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert losses[0] == losses[1] != losses[2]


def test_recurrent_modules_see_the_exchanged_weights():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)

    def loss(model, meta, batch):
        return meta.value * model(batch)[0].square().mean()

    problem = mt.BilevelProblem(model, scale(), loss, loss)
    batch = torch.randn(2, 5, 3)
    before = float(loss(model, problem.meta, batch).detach())
    zeros = {name: torch.zeros_like(p) for name, p in problem.parameters().items()}
    assert float(problem.evaluate_valid(zeros, {}, {}, batch, 0).detach()) == 0
    assert float(loss(model, problem.meta, batch).detach()) == before


@pytest.mark.parametrize(("mode", "expected"), [("train", True), ("eval", False), (None, True)])
def test_the_mode_of_the_outer_loss(mode, expected):
    seen = []

    def valid_loss(model, meta, batch):
        seen.append((model.training, meta.training))
        return squares(model, meta, batch)

    problem = mt.BilevelProblem(nn.Linear(3, 2), scale(), squares, valid_loss, mode)
    problem.evaluate_valid(problem.parameters(), {}, {}, torch.ones(1, 3), 0)
    assert seen == [(expected, expected)]
    assert problem.model.training and problem.meta.training


def test_hugging_face_models_are_taken_as_they_are():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)

    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

    def train_loss(model, meta, batch):
        output = model(**batch)
        return F.cross_entropy(output.logits * meta.log.exp(), batch["labels"])

    def valid_loss(model, meta, batch):
        return model(**batch).loss

    problem = mt.BilevelProblem(model, Temperature(), train_loss, valid_loss)
    batch = {"input_ids": torch.randint(20, (4, 6)), "labels": torch.tensor([0, 1, 2, 0])}
    inner = mt.inner.SGD(lr=0.5)
    for estimator in (mt.hypergradients.Unrolled(2), mt.hypergradients.EvoGrad(rescale=0.5)):
        batches = [batch] * estimator.horizon
        result = estimator(problem, inner, inner.init(problem), batches, batch)
        assert float(result.gradient["log"]) != 0
    result = mt.check_hypergradient(
        problem, inner, mt.hypergradients.Unrolled(2), [batch, batch], batch
    )
    assert result.relative_error < 1e-6


def test_load_copies_a_state_into_the_modules():
    case = bank.small_net()
    problem = case.problem
    state, _ = case.inner.step(
        problem, case.state, problem.meta_parameters(), case.train_batches[0]
    )
    places = [id(p) for p in problem.model.parameters()]
    problem.load(state)
    assert places == [id(p) for p in problem.model.parameters()]
    for name, p in problem.model.named_parameters():
        assert torch.equal(p, state.parameters[name])
    assert int(problem.model[1].num_batches_tracked) == 1


def test_a_function_of_meta_sees_other_parameters():
    problem = bank.learned_rates().problem
    value = problem.evaluate_meta(lambda meta: meta.lr * 2, {"lr": torch.tensor(3.0)})
    assert float(value) == 6
    assert float(problem.meta.lr.detach()) == pytest.approx(0.2)


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(1), 1.0, None])
def test_losses_must_be_scalar_tensors(value):
    problem = mt.BilevelProblem(nn.Linear(3, 2), scale(), lambda *_: value, squares)
    with pytest.raises(ShapeError, match=r"train_loss returned .*a scalar tensor"):
        problem.evaluate_train(problem.parameters(), {}, {}, None, 0)


def test_what_cannot_be_a_problem():
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigurationError, match="model is a function"):
        mt.BilevelProblem(squares, scale(), squares, squares)
    with pytest.raises(ConfigurationError, match="meta is a Parameter"):
        mt.BilevelProblem(model, nn.Parameter(torch.ones(1)), squares, squares)
    with pytest.raises(ConfigurationError, match="meta has no parameter"):
        mt.BilevelProblem(model, nn.Linear(3, 2).requires_grad_(False), squares, squares)
    with pytest.raises(ConfigurationError, match="model has no inner parameter"):
        mt.BilevelProblem(model, model, squares, squares)
    with pytest.raises(ConfigurationError, match="valid_mode is 'test'"):
        mt.BilevelProblem(model, scale(), squares, squares, "test")


def test_a_meta_from_an_outer_scope_is_told():
    outer = scale()
    problem = mt.BilevelProblem(
        nn.Linear(3, 2),
        scale(),
        lambda model, meta, batch: outer.value * squares(model, meta, batch),
        squares,
    )
    inner = mt.inner.SGD(lr=0.1)
    with pytest.raises(UnusedMetaParameterError, match="outer scope"):
        mt.hypergradients.Unrolled()(
            problem, inner, inner.init(problem), [torch.ones(2, 3)], torch.ones(2, 3)
        )


def python_number(tensor):
    return tensor * random.random()


def python_normal(tensor):
    return tensor * random.gauss(0, 1)


def numpy_number(tensor):
    return tensor * float(np.random.rand())


def numpy_normal(tensor):
    return tensor * float(np.random.standard_normal())


def numpy_mask(tensor):
    return tensor * torch.from_numpy(np.random.permutation(4) < 2)


def all_of_them(tensor):
    return python_normal(numpy_mask(tensor)) * torch.rand(())


DRAWS = [python_number, python_normal, numpy_number, numpy_normal, numpy_mask, all_of_them]


@pytest.mark.parametrize("draw", DRAWS)
def test_every_global_generator_follows_the_key(draw):
    def loss(model, meta, batch):
        return draw(model.value[:4]).sum()

    problem = mt.BilevelProblem(bank.Value([1.0, -2.0, 4.0, 8.0]), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, None)
    random.seed(1)
    np.random.seed(2)
    random.gauss(0, 1), np.random.randn()
    start = place()
    expected = random.gauss(0, 1), np.random.randn(), torch.rand(()).item()
    go_to(start)
    # The very first evaluation, before it is known what the loss draws.
    first, other, again = (float(problem.evaluate_train(*arguments, key)[0]) for key in (3, 4, 3))
    assert first == again != other
    assert (random.gauss(0, 1), np.random.randn(), torch.rand(()).item()) == expected
    random.seed(5), np.random.seed(6)
    assert float(problem.evaluate_valid(*arguments, 3)) == first


def test_a_loss_that_draws_late_or_for_some_batches_follows_the_key():
    def loss(model, meta, batch):
        return model.value * (np.random.rand() + random.random() if batch else 1.0)

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {})
    for _ in range(3):
        assert float(problem.evaluate_train(*arguments, False, 3)[0]) == 1
    found = [float(problem.evaluate_train(*arguments, True, key)[0]) for key in (3, 4, 3)]
    assert found[0] == found[2] != found[1]


def test_what_is_watched_is_run_once():
    runs = []

    def loss(model, meta, batch):
        runs.append(np.random.rand())
        return model.value.detach() * runs[-1] + model.value

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, None)
    with RecordDetached() as recorded:
        first = problem.evaluate_train(*arguments, 3)[0]
    assert len(runs) == len(recorded.values) == 1
    assert problem.evaluate_train(*arguments, 3)[0] == first


def test_buffers_that_move_are_not_moved_twice_by_a_second_run():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def loss(model, meta, batch):
        return model(batch + random.random()).mean()

    problem = mt.BilevelProblem(model, scale(), loss, loss)
    state = (problem.parameters(), problem.meta_parameters(), problem.buffers())
    _, buffers = problem.evaluate_train(*state, torch.ones(4, 3), 3)
    assert int(buffers["model.0.num_batches_tracked"]) == 1


def test_devices_are_those_of_frozen_parameters_too():
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    problem = mt.BilevelProblem(model, scale(), squares, squares)
    assert problem.devices() == {torch.device("meta"), torch.device("cpu")}


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
