"""Modules as pure functions: what is exchanged, what is restored, what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError, UnusedMetaParameterError
from metatoolkit.testing import bank


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


def test_lazy_parameters_are_an_error_until_they_have_a_shape():
    model = nn.LazyLinear(2)
    with pytest.raises(ConfigurationError, match=r"model has lazy parameters.*call it once"):
        mt.BilevelProblem(model, scale(), squares, squares)
    model(torch.ones(1, 3))
    mt.BilevelProblem(model, scale(), squares, squares)
    with pytest.raises(ConfigurationError, match=r"meta has lazy parameters"):
        mt.BilevelProblem(model, nn.LazyLinear(2), squares, squares)


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


def test_devices_are_those_of_frozen_parameters_too():
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    problem = mt.BilevelProblem(model, scale(), squares, squares)
    assert problem.devices() == {torch.device("meta"), torch.device("cpu")}


def test_each_evaluation_is_told_to_whoever_watches():
    case = bank.illustration()
    problem, seen = case.problem, []
    parameters, meta = problem.parameters(), problem.meta_parameters()
    problem.watch = lambda *told: seen.append(told)
    train, _ = problem.evaluate_train(parameters, meta, {}, "batch", 4)
    valid = problem.evaluate_valid(parameters, meta, {}, "other", 5)
    problem.evaluate_meta(lambda meta: meta.value, meta)
    arguments = [(parameters, meta, {}, "batch", 4), (parameters, meta, {}, "other", 5)]
    assert [told[1:3] for told in seen] == list(
        zip(("train_loss", "valid_loss"), arguments, strict=True)
    )
    assert [told[0] for told in seen] == [problem, problem]
    assert seen[0][3] is train and seen[1][3] is valid


@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_an_outer_loss_of_no_scalar_is_told_by_its_name(mode):
    problem = mt.BilevelProblem(nn.Linear(3, 2), scale(), squares, lambda *_: None, mode)
    with pytest.raises(ShapeError, match=r"valid_loss returned a NoneType"):
        problem.evaluate_valid(problem.parameters(), {}, {}, None, 0)


def test_copies_of_a_problem_have_its_identity_and_no_other_has():
    problem, other = bank.illustration().problem, bank.illustration().problem
    assert copy.deepcopy(problem).identity == problem.identity != other.identity


def test_what_is_differentiated_is_theta_unless_it_is_said(monkeypatch):
    problem, told = bank.illustration().problem, []
    monkeypatch.setattr(
        problem._passes, "watch_second_derivatives", lambda *given: told.append(given)
    )
    problem.watch_second_derivatives("loss", ["tensor"])
    problem.watch_second_derivatives("loss", ["tensor"], "λ")
    assert told == [("loss", ["tensor"], "θ"), ("loss", ["tensor"], "λ")]
