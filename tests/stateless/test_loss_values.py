"""What a loss may return: a real scalar, or an error that tells where the scalar is."""

import types

import numpy as np
import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnsupportedError
from metatoolkit.stateless.loss_values import check_takes_batch, checked_loss, refuse_sparse
from metatoolkit.testing import bank

SCALAR = torch.tensor(1.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), r"\(3,\) float32; .*reduce it with \.mean\(\)"),
        (torch.ones(1), r"\(1,\) float32; .*reduce"),
        (None, r"NoneType.*let the function return it"),
        (1.5, r"float.*\.item\(\)"),
        (np.float64(1.5), r"float64.*\.item\(\)"),
        (types.SimpleNamespace(loss=SCALAR), r"return its \.loss"),
        (types.SimpleNamespace(loss=None, logits=SCALAR), r"its \.loss is None; give .* labels"),
        ({"loss": SCALAR, "logits": SCALAR}, r"return its \['loss'\]"),
        ({"mlm": SCALAR}, r"return one of its 'mlm'"),
        (dict.fromkeys("abcdefg", SCALAR), r"return one of its 'a', 'b', 'c', 'd', 'e'\.$"),
        ((SCALAR, torch.ones(3)), r"return its first entry, \[0\]"),
        ([torch.ones(3), SCALAR], r"reduce it to one"),
        ((), r"a tuple; a scalar tensor \(0-d\) is needed\.$"),
        (("text", SCALAR), r"a tuple; a scalar tensor \(0-d\) is needed\.$"),
        (object(), r"an? object; a scalar tensor \(0-d\) is needed\.$"),
    ],
)
def test_what_is_no_scalar_is_told_with_where_it_is(value, message):
    with pytest.raises(ShapeError, match=rf"train_loss returned .*{message}"):
        checked_loss(value, "train_loss")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(3), r"int64.*count of errors has no gradient"),
        (torch.tensor(True), r"bool.*count of errors"),
        (torch.tensor(1 + 2j), r"complex64.*real part"),
    ],
)
def test_what_has_no_gradient_is_told(value, message):
    with pytest.raises(DataError, match=rf"valid_loss returned .*{message}"):
        checked_loss(value, "valid_loss")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_real_scalars_pass(dtype):
    value = SCALAR.to(dtype)
    assert checked_loss(value, "train_loss") is value


def test_the_output_of_a_language_model_is_told():
    transformers = pytest.importorskip("transformers")
    configuration = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=1
    )
    model = transformers.GPT2LMHeadModel(configuration)
    tokens = torch.arange(8).unsqueeze(0)
    problem = mt.BilevelProblem(
        model,
        bank.Value(1.0, torch.float32),
        lambda model, meta, batch: model(input_ids=batch, labels=batch),
        lambda model, meta, batch: model(input_ids=batch),
    )
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    with pytest.raises(ShapeError, match=r"train_loss returned .*Output.*return its \.loss"):
        inner.step(problem, state, problem.meta_parameters(), tokens)
    with pytest.raises(ShapeError, match=r"valid_loss returned .*Output.*its \.loss is None"):
        problem.evaluate_valid(
            state.parameters, problem.meta_parameters(), state.buffers, tokens, 0
        )


@pytest.mark.parametrize(
    "make", [nn.Embedding, lambda *a, **k: nn.EmbeddingBag(*a, mode="sum", **k)]
)
def test_sparse_gradients_are_refused_and_dense_ones_are_not(make):
    def problem_of(sparse):
        model = make(5, 3, sparse=sparse)
        batch = torch.tensor([[0, 1], [2, 1]])
        problem = mt.BilevelProblem(
            model,
            bank.Value(1.0, torch.float32),
            lambda model, meta, batch: meta.value * model(batch).square().sum(),
            lambda model, meta, batch: model(batch).square().sum(),
        )
        return problem, batch

    inner = mt.inner.SGD(lr=0.1)
    problem, batch = problem_of(True)
    state = inner.init(problem)
    with pytest.raises(UnsupportedError, match=r"shape \(5, 3\) is sparse.*sparse=False"):
        inner.step(problem, state, problem.meta_parameters(), batch)
    for estimator in (mt.hypergradients.EvoGrad(2, 0.1, 0.5), mt.hypergradients.FiniteDifference()):
        with pytest.raises(UnsupportedError, match="sparse=False"):
            estimator(problem, inner, state, [batch], batch)
    problem, batch = problem_of(False)
    estimator = mt.hypergradients.FiniteDifference()
    assert estimator(problem, inner, inner.init(problem), [batch], batch).gradient["value"] != 0


def test_missing_gradients_are_not_sparse():
    refuse_sparse([None, SCALAR])


class Criterion(nn.Module):
    def forward(self, model, meta, batch):
        return model(batch).mean()


@pytest.mark.parametrize("loss", [Criterion(), lambda model, meta, batch, scale=1.0: scale, max])
def test_what_takes_model_meta_and_batch_is_a_loss(loss):
    check_takes_batch(loss, "train_loss")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), r"cannot be called with model, meta and batch \(too many"),
        (lambda model, batch: 0.0, "cannot be called with model, meta and batch"),
        (lambda model, meta, batch, scale: 0.0, "missing a required argument: 'scale'"),
        (None, "is None"),
    ],
)
def test_what_does_not_is_refused_when_the_problem_is_made(loss, message):
    model, meta = nn.Linear(1, 1), nn.Linear(1, 1)
    for losses, kind in (((loss, Criterion()), "train_loss"), ((Criterion(), loss), "valid_loss")):
        with pytest.raises(ConfigurationError, match=rf"{kind} .*{message}.*\(model, meta, batch"):
            mt.BilevelProblem(model, meta, *losses)
