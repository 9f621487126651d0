"""The radius of a finite difference, and what it tells of its own error."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import AccuracyWarning
from metatoolkit.hypergradients import SAMA, FiniteDifference, OneStep
from metatoolkit.testing import bank
from tests.hypergradients.held_losses import relative_error
from tests.hypergradients.test_cost import Setup

both = pytest.mark.parametrize(
    ("estimator", "limit"),
    [(FiniteDifference(), OneStep()), (SAMA(), OneStep(False))],
    ids=["FiniteDifference", "SAMA"],
)


class Shift(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))


class Encoder(nn.Module):
    """A BERT as it is made, and a head on its first token."""

    def __init__(self, size):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            hidden_size=size,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * size,
            vocab_size=1000,
            attn_implementation="eager",
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(size, 3)

    def forward(self, tokens, shift=0.0):
        hidden = self.bert.embeddings(tokens) + shift
        return self.head(self.bert.encoder(hidden)[0][:, 0])


def encoder_case(size, where, inner):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(size)
        meta = mt.metaparameters.WeightNet() if where == "weights" else Shift(size)
        batches = [(torch.randint(1000, (8, 12)), torch.randint(3, (8,))) for _ in range(2)]

    def shifted(model, meta, batch):
        return F.cross_entropy(model(batch[0], meta.value), batch[1])

    loss = mt.losses.weighted_cross_entropy if where == "weights" else shifted
    problem = mt.BilevelProblem(model, meta, loss, mt.losses.cross_entropy)
    return bank.ProblemInstance(problem, inner, batches[:1], batches[1], seed=5)


@both
@pytest.mark.parametrize("where", ["weights", "input"])
@pytest.mark.parametrize(
    "size",
    [64, 128, pytest.param(256, marks=pytest.mark.slow), pytest.param(384, marks=pytest.mark.slow)],
)
def test_an_encoder_of_any_width_in_float32(size, where, estimator, limit):
    case = encoder_case(size, where, mt.inner.SGD(lr=0.1))
    state = case.state
    result = case.call(estimator, state)
    error = relative_error(result, case.call(limit, state))
    assert error < 2e-3
    assert error - 1e-3 < float(result.details["difference_error"]) < 0.05
    assert result.cost.forward == 4


@both
def test_an_encoder_under_adam(estimator, limit):
    case = encoder_case(64, "weights", mt.inner.AdamW(lr=1e-3))
    state = case.state
    assert relative_error(case.call(estimator, state), case.call(limit, state)) < 2e-2
    for _ in range(3):
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
    assert relative_error(case.call(estimator, state), case.call(limit, state)) < 5e-3


@both
@pytest.mark.parametrize("where", ["loss", "input"])
def test_a_rectified_network_with_batch_norm(where, estimator, limit):
    setup = Setup(where, 8)
    result = setup.call(estimator)
    error = relative_error(result, setup.call(limit))
    assert error < 1e-2
    assert error < float(result.details["difference_error"]) + 1e-3
    assert result.cost.forward == 4


class Scaled(nn.Module):
    """The same function of parameters of any size."""

    def __init__(self, scale):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(10, 50), nn.Linear(50, 50), nn.Linear(50, 3)])
        self.scale = scale
        for parameter in self.parameters():
            parameter.data *= scale

    def forward(self, inputs):
        for layer in self.layers[:-1]:
            inputs = F.linear(inputs, layer.weight / self.scale, layer.bias / self.scale).tanh()
        last = self.layers[-1]
        return F.linear(inputs, last.weight / self.scale, last.bias / self.scale)


def scaled_case(scale, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, meta = Scaled(scale).to(dtype), mt.metaparameters.WeightNet().to(dtype)
        batches = [(torch.randn(16, 10, dtype=dtype), torch.randint(3, (16,))) for _ in range(2)]
    problem = mt.BilevelProblem(
        model, meta, mt.losses.weighted_cross_entropy, mt.losses.cross_entropy
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1 * scale**2), batches[:1], batches[1])


@both
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
def test_parameters_of_any_size(dtype, most, scale, estimator, limit):
    case = scaled_case(scale, dtype)
    result = case.call(estimator)
    assert relative_error(result, case.call(limit)) < most
    assert float(result.details["difference_error"]) < 1e-2


def test_the_radius_goes_with_the_scale_of_the_parameters():
    radii = [
        float(scaled_case(scale, torch.float64).call(SAMA()).details["radius"])
        for scale in (1e-3, 1.0, 1e3)
    ]
    assert radii[1] / radii[0] == pytest.approx(1e3, rel=1e-2)
    assert radii[2] / radii[1] == pytest.approx(1e3, rel=1e-2)


def with_offset(offset):
    """Losses that say nothing of their scale."""
    case = bank.small_net()
    losses = [
        lambda model, meta, batch, own=own: own(model, meta, batch) + offset
        for own in (case.problem.train_loss, case.problem.valid_loss)
    ]
    problem = mt.BilevelProblem(case.problem.model, case.problem.meta, *losses)
    return dataclasses.replace(case, problem=problem)


@both
def test_other_radii_are_tried_where_the_first_bends(estimator, limit):
    case = with_offset(1e6)
    state = case.state
    plain = case.call(estimator, state)
    assert plain.cost.forward == 4
    steep = dataclasses.replace(
        case,
        problem=mt.BilevelProblem(
            case.problem.model,
            case.problem.meta,
            lambda model, meta, batch: (
                meta.log_penalty.exp() * (3e4 * model[0].weight).sin().sum() + 1e6
            ),
            lambda model, meta, batch: case.problem.valid_loss(model, meta, batch),
        ),
    )
    result = steep.call(estimator, state)
    assert relative_error(result, steep.call(limit, state)) < 1e-2
    assert result.cost.forward > 4 or isinstance(estimator, SAMA)
    assert float(result.details["difference_error"]) < 0.1


@both
@pytest.mark.parametrize("where", ["weights", "input"])
def test_autocast_inside_the_loss_is_seen(where, estimator, limit):
    case = encoder_case(64, where, mt.inner.SGD(lr=0.1))
    plain = case.problem.train_loss

    def train_loss(model, meta, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(model, meta, batch)

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    state = case.state
    exact = case.call(limit, state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = case.call(estimator, state)
    told = float(result.details["difference_error"])
    assert relative_error(result, exact) < 2.5 * told + 0.02
    assert any(w.category is AccuracyWarning for w in caught) == (told > 0.1)
    # Two radii at least, for values of few digits.
    assert result.cost.forward >= 6


@pytest.mark.parametrize("make", [FiniteDifference, SAMA])
def test_autocast_around_the_call_widens_the_radius(make):
    case = bank.small_net()
    case.problem.model.float()
    case.problem.meta.float()
    case.train_batches = [(inputs.float(), targets) for inputs, targets in case.train_batches]
    case.valid_batch = (case.valid_batch[0].float(), case.valid_batch[1])
    exact = case.call(make())
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        rounded = case.call(make())
    assert relative_error(rounded, exact) < 0.4


@both
def test_single_precision_inside_double_is_seen(estimator, limit):
    case = bank.small_net()

    def train_loss(model, meta, batch):
        logits = model(batch[0]).float()
        losses = F.cross_entropy(logits, batch[1], reduction="none").double()
        return (meta(losses) * losses).mean()

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    state = case.state
    assert relative_error(case.call(estimator, state), case.call(limit, state)) < 1e-3


def test_a_given_radius_is_taken_and_its_error_told():
    case = bank.small_net()
    state = case.state
    exact = case.call(OneStep(), state)
    for radius in (0.1, 0.01):
        result = case.call(FiniteDifference(radius), state)
        assert float(result.details["radius"]) == radius and result.cost.forward == 4
        assert relative_error(result, exact) < float(result.details["difference_error"]) < 1.0
