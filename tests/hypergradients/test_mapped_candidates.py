"""EvoGrad's candidates by one mapped pass: the numbers of passes one by one, or an error."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError, UnsupportedError
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.testing.bank import ProblemInstance
from tests.stateless.functions import Square

CLASSES, EXAMPLES, FEATURES = 3, 10, 16


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, EXAMPLES))


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class Gated(nn.GRU):
    def forward(self, inputs):
        return super().forward(inputs.unsqueeze(1))[0].squeeze(1)


def normalized():
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def with_layer(function):
    return nn.Sequential(nn.Linear(FEATURES, 8), Layer(function), nn.Linear(8, CLASSES))


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 8)), layer, nn.Flatten(), nn.Linear(16, CLASSES))


def instance(model, micro_batch=None, calls=None):
    def train_loss(model, meta, batch):
        if calls is not None:
            calls.append(1)
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (losses * batch[2] * meta.weights.sigmoid()[: len(losses)]).mean()

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    torch.manual_seed(0)
    problem = mt.BilevelProblem(
        model().double(), Weights().double(), train_loss, valid_loss, micro_batch=micro_batch
    )
    inputs = torch.randn(EXAMPLES, FEATURES, dtype=torch.float64)
    batch = inputs, torch.randint(CLASSES, (EXAMPLES,)), torch.ones(EXAMPLES).double()
    return ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)


def evograd(streamed="vmap", **options):
    return EvoGrad(4, 0.1, 0.5, streamed=streamed, fresh=False, **options)


@pytest.mark.parametrize("common", [True, False])
def test_masks_and_statistics_are_those_of_passes_one_by_one(common):
    expected = instance(normalized).call(evograd(False, common_random_numbers=common))
    case = instance(normalized)
    before = {name: buffer.clone() for name, buffer in case.problem.model.named_buffers()}
    generator = torch.get_rng_state()
    found = case.call(evograd(common_random_numbers=common))
    for key in ("train_losses", "coefficients"):
        torch.testing.assert_close(found.details[key], expected.details[key], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-9, atol=1e-14)
    assert found.cost == expected.cost
    after = dict(case.problem.model.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_loss_that_computes_in_less_precision_inside_is_no_other_loss():
    class Half(nn.Linear):
        def forward(self, inputs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(inputs.float()).double()

    case = instance(lambda: nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), Half(64, CLASSES)))
    for module in case.problem.model:
        if isinstance(module, Half):
            module.float()
    state = case.inner.init(case.problem)
    estimator = evograd()
    estimator.checks_rounding = False
    arguments = case.problem, case.inner, state, case.train_batches, case.valid_batch
    assert estimator(*arguments).gradient["weights"].norm() > 0


def test_losses_are_compared_in_the_first_call_and_then_taken_by_one_pass():
    calls = []
    case = instance(lambda: with_layer(torch.tanh), calls=calls)
    estimator = evograd()
    case.call(estimator)
    # Those of the four, the mapped one, and the first once more.
    assert len(calls) == 6
    calls.clear()
    case.call(estimator)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: with_layer(Square.apply), "must override the setup_context"),
        (lambda: with_layer(lambda x: x if x.sum() > 0 else 2 * x), "torch.vmap cannot run"),
        (lambda: with_layer(lambda x: x * random.random()), "generators of Python or NumPy"),
        (lambda: nn.Sequential(Gated(FEATURES, 8), nn.Linear(8, CLASSES)), "torch.vmap cannot"),
        # Masks of attention are drawn in another order where it is mapped.
        (attention, r"train_loss is \S+ for candidate \d among the others and \S+ by itself"),
    ],
)
def test_a_loss_that_cannot_be_mapped_is_an_error(model, why):
    case = instance(model)
    with pytest.raises(UnsupportedError, match=rf"streamed is 'vmap', and .*{why}.*streamed=None"):
        case.call(evograd())
    assert instance(model).call(evograd(None)).gradient["weights"].norm() > 0


def test_micro_batches_are_an_error():
    case = instance(lambda: with_layer(torch.tanh), micro_batch=5)
    with pytest.raises(UnsupportedError, match="micro-batches"):
        case.call(evograd())


def test_common_constants_are_an_error():
    with pytest.raises(ConfigurationError, match=r"streamed='vmap' with constants='common'"):
        evograd(constants="common")


@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_is_not_finite_is_named(first):
    case = instance(lambda: with_layer(torch.tanh))
    estimator = evograd()
    if not first:
        case.call(estimator)
    (inputs, *rest), state = case.train_batches[0], case.inner.init(case.problem)
    bad = (inputs.index_fill(0, torch.tensor(2), torch.nan), *rest)
    with pytest.raises(NonFiniteError, match="training loss of a candidate"):
        estimator(case.problem, case.inner, state, [bad], case.valid_batch)
