"""EvoGrad with features that are computed once against EvoGrad without."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, ProblemInstance
from metatoolkit.metaparameters.representation_transform import RepresentationTransform

F64 = torch.float64


class Counted(nn.Sequential):
    """Layers that count their passes."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        return super().forward(inputs)


class Network(nn.Module):
    def __init__(self, dropout=0.3, width=8):
        super().__init__()
        self.encoder = Counted(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(dropout)
        )
        self.head = Counted(nn.Dropout(dropout), nn.Linear(width, 3))


def encode(model, meta, batch):
    """The prefix; what it returned passes unchanged."""
    return batch if "hidden" in batch else {**batch, "hidden": model.encoder(batch["inputs"])}


def train_loss(model, meta, batch):
    features = encode(model, meta, batch)
    return F.cross_entropy(model.head(meta(features["hidden"])), features["labels"])


def valid_loss(model, meta, batch):
    features = encode(model, meta, batch)
    penalty = sum(parameter.square().sum() for parameter in meta.parameters())
    return F.cross_entropy(model.head(features["hidden"]), features["labels"]) + 1e-3 * penalty


def draw(generator, examples=10):
    return {
        "inputs": torch.randn(examples, 6, generator=generator, dtype=F64),
        "labels": torch.randint(3, (examples,), generator=generator),
    }


class Setup(ProblemInstance):
    def __init__(self, dropout=0.3, valid_mode=None):
        torch.manual_seed(0)
        self.model = Network(dropout).double()
        self.meta = RepresentationTransform(8).double()
        problem = mt.BilevelProblem(self.model, self.meta, train_loss, valid_loss, valid_mode)
        inner = mt.inner.SGD(lr=0.1)
        generator = torch.Generator().manual_seed(1)
        train, valid = draw(generator), draw(generator)
        super().__init__(problem, inner, [train], valid, inner.init(problem))

    def evograd(self, make=EvoGrad, **arguments):
        return self.call(make(sigma=0.1, temperature=0.5, **arguments))


HEAD = {"perturb": ["head.*"]}


@pytest.mark.parametrize("valid_mode", [None, "eval", "train"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"candidates": 2},
        {"candidates": 5, "streamed": True},
        {"candidates": 5, "streamed": "vmap"},
        {"candidates": 3, "streamed": False, "rescale": 0.1},
        {"make": GuidedEvoGrad},
    ],
)
def test_equals_evograd_without_prefix(arguments, dropout, valid_mode):
    setup = Setup(dropout, valid_mode)
    plain = setup.evograd(**HEAD, **arguments)
    cached = setup.evograd(**HEAD, **arguments, prefix=encode)
    for name, gradient in plain.gradient.items():
        error = float((cached.gradient[name] - gradient).norm())
        assert error < 1e-10 * float(gradient.norm())
    for name in ("weights", "coefficients", "train_losses"):
        torch.testing.assert_close(
            cached.details[name], plain.details[name], rtol=1e-10, atol=1e-14
        )
    torch.testing.assert_close(cached.valid_loss, plain.valid_loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("where", ["prefix", "loss", "both"])
def test_the_generators_of_python_and_numpy_go_on_after_the_prefix(where, streamed):
    def noise():
        return random.gauss(1, 0.3) * np.random.normal(1, 0.3)

    def prefix(model, meta, batch):
        features = encode(model, meta, batch)
        if features is not batch and where != "loss":
            features["hidden"] = features["hidden"] * noise()
        return features

    def loss(model, meta, batch):
        features = prefix(model, meta, batch)
        factor = 1.0 if where == "prefix" else noise()
        return train_loss(model, meta, {**features, "hidden": factor * features["hidden"]})

    setup = Setup()

    def outer(model, meta, batch):
        return valid_loss(model, meta, prefix(model, meta, batch))

    setup.problem = mt.BilevelProblem(setup.model, setup.meta, loss, outer)
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        options = {**HEAD, "candidates": 3, "streamed": streamed}
        found += [setup.evograd(**options, prefix=prefix), setup.evograd(**options)]
    for result in found[1:]:
        for name, gradient in result.gradient.items():
            torch.testing.assert_close(gradient, found[0].gradient[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("make", [EvoGrad, GuidedEvoGrad])
def test_is_the_derivative_of_its_objective(make):
    setup = Setup()
    (train,), valid = setup.train_batches, setup.valid_batch
    estimator = make(sigma=0.1, temperature=0.5, **HEAD, prefix=encode)
    check = mt.check_hypergradient(
        setup.problem, setup.inner, estimator, [train], valid, coordinates=24
    )
    assert check.relative_error < 1e-6


@pytest.mark.parametrize(("streamed", "heads", "first"), [(True, 9, 9), (False, 5, 6)])
def test_the_encoder_sees_each_batch_once(streamed, heads, first):
    setup = Setup()
    setup.model.encoder.passes = setup.model.head.passes = 0
    result = setup.evograd(candidates=4, streamed=streamed, **HEAD, prefix=encode)
    assert setup.model.encoder.passes == 2
    # The first call looks once more whether a loss can be evaluated again.
    assert setup.model.head.passes == first
    assert result.cost.forward == 2 + heads
    setup.model.encoder.passes = 0
    setup.evograd(candidates=4, streamed=streamed, **HEAD)
    assert setup.model.encoder.passes == heads


def test_global_state_stays():
    setup = Setup()
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    torch.manual_seed(7)
    place = torch.get_rng_state()
    setup.evograd(**HEAD, prefix=encode)
    assert torch.equal(torch.get_rng_state(), place)
    for name, tensor in setup.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for module in (setup.model, setup.meta):
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert setup.problem.train_loss is train_loss and setup.problem.valid_loss is valid_loss
    assert torch.is_grad_enabled()


class Wide(nn.Module):
    """An encoder of four layers that costs far more than the head."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(6, 128)]
        for _ in range(4):
            layers += [nn.Tanh(), nn.Linear(128, 128)]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(128, 3)


@pytest.fixture
def wide():
    torch.manual_seed(0)
    model = Wide().double()
    meta = RepresentationTransform(128, 2).double()
    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    generator = torch.Generator().manual_seed(1)
    train, valid = draw(generator, 64), draw(generator, 64)

    def encoder():
        with torch.no_grad():
            model.encoder(train["inputs"])

    def call(estimator):
        return estimator(problem, inner, state, [train], valid)

    def base_step():
        return inner.step(problem, state, problem.meta_parameters(), train)

    return encoder, call, base_step


@pytest.mark.parametrize("candidates", [2, 4, 8])
def test_flops_are_two_passes_of_the_encoder_and_the_heads(wide, candidates):
    encoder, call, _ = wide
    one = count_flops(encoder)
    cached = EvoGrad(candidates, **HEAD, streamed=True, prefix=encode)
    per_candidate = [
        count_flops(
            lambda number=number: call(EvoGrad(number, **HEAD, streamed=True, prefix=encode))
        )
        for number in (2, 3)
    ]
    # What the passes of the prefix leave is proportional to the candidates, and small.
    heads = per_candidate[1] - per_candidate[0]
    total = count_flops(lambda: call(cached))
    assert total == 2 * one + candidates * heads + (per_candidate[0] - 2 * one - 2 * heads)
    assert total < 2 * one * (1 + 0.06 * candidates)
    plain = count_flops(lambda: call(EvoGrad(candidates, **HEAD, streamed=True)))
    assert plain > (2 * candidates + 1) * one
    second_order = count_flops(lambda: call(mt.hypergradients.Unrolled(1)))
    assert total < 0.4 * second_order


def test_memory_is_below_that_of_a_base_step(wide):
    _, call, base_step = wide
    reference = peak_memory(base_step)
    for candidates in (2, 8):
        estimator = EvoGrad(candidates, **HEAD, prefix=encode)
        assert peak_memory(lambda estimator=estimator: call(estimator)) < 0.7 * reference


def test_arguments_that_contradict():
    with pytest.raises(ConfigurationError, match="prefix is 'encoder'"):
        EvoGrad(prefix="encoder")
    with pytest.raises(ConfigurationError, match="prefix with common_random_numbers=False"):
        EvoGrad(**HEAD, prefix=encode, common_random_numbers=False)
