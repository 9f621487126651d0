"""Recurrent modules, buffers and models of Hugging Face are run again as they were."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import GMRES, FiniteDifference, ForwardMode, Implicit, Unrolled
from metatoolkit.testing import bank
from tests.stateless.checkpointed import RUNS, plainly


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_second_order_through_a_checkpointed_hugging_face_model(model):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_dropout_prob": 0.1, "num_hidden_layers": 2, "num_attention_heads": 2}
    if model == "bert":
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_labels=3, **sizes
        )
        network = transformers.BertForSequenceClassification(config).double()
    else:
        config = transformers.GPT2Config(
            vocab_size=20,
            n_embd=8,
            n_layer=2,
            n_head=2,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        network = transformers.GPT2ForSequenceClassification(config).double()

    def train_loss(model, meta, batch):
        return (F.cross_entropy(model(batch).logits, labels, reduction="none") * meta.value).mean()

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch).logits, labels)

    labels = torch.tensor([0, 1, 2, 1])
    batch = torch.arange(1, 17).view(4, 4)
    problem = mt.BilevelProblem(network, bank.Value([1.0, 0.5, 2.0, 1.5]), train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    estimators = [Unrolled(2), Implicit(GMRES(3)), ForwardMode(1, chunk=1), FiniteDifference()]
    rights = [case.call(estimator) for estimator in estimators]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    for estimator, right in zip(estimators, rights, strict=True):
        found = case.call(estimator)
        torch.testing.assert_close(found.gradient, right.gradient, rtol=1e-8, atol=1e-12)
        assert float(right.gradient["value"].abs().max()) > 1e-4


class Counted(nn.Module):
    """A buffer that moves before the checkpointed part reads it."""

    def __init__(self, run, replaced):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("count", torch.ones((), dtype=torch.float64))
        self.run = run
        self.replaced = replaced

    def forward(self, x):
        if self.replaced:
            self.count = self.count + 1
        else:
            self.count += 1
        return self.run(lambda x: torch.sin(self.w * x * self.count), x)


@pytest.mark.parametrize("run", [RUNS["as it is"], plainly], ids=["as it is", "checkpointed"])
@pytest.mark.parametrize("replaced", [False, True])
def test_buffers_are_run_again_as_they_were_at_that_place(run, replaced):
    problem = mt.BilevelProblem(
        Counted(run, replaced),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model(batch),
        lambda model, meta, batch: model(batch),
    )
    inner, x = mt.inner.SGD(lr=0.1), torch.tensor(1.0, dtype=torch.float64)
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), x)
    assert float(state.parameters["w"]) == pytest.approx(0.7 - 0.1 * 2 * math.cos(1.4))
    assert float(state.buffers["model.count"]) == 2
    state, _ = inner.step(problem, state, problem.meta_parameters(), x)
    assert float(state.buffers["model.count"]) == 3


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules_in_a_checkpoint_are_run_again_with_the_state(kind):
    def recurrent_case(run):
        torch.manual_seed(1)

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = kind(2, 3)

            def forward(self, x):
                return run(lambda x: self.cell(x)[0], x)

        model = Recurrent().double()
        generator = torch.Generator().manual_seed(1)
        batch = torch.randn(4, 1, 2, generator=generator, dtype=torch.float64)

        def train_loss(model, meta, batch):
            return model(batch * meta.value).square().mean()

        problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, train_loss)
        return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.5), [batch], batch)

    plain, checkpointed = recurrent_case(RUNS["as it is"]), recurrent_case(plainly)
    flat = list(checkpointed.problem.model.cell._flat_weights)
    right, found = plain.call(Unrolled(3)), checkpointed.call(Unrolled(3))
    torch.testing.assert_close(found.gradient, right.gradient)
    left = checkpointed.problem.model.cell._flat_weights
    assert len(left) == 4 and all(a is b for a, b in zip(left, flat, strict=True))
