"""Small networks: BatchNorm, dropout, tied and frozen parameters, λ wherever it may act."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner import SGD, Adam
from metatoolkit.metaparameters import Initialization
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import seeded
from metatoolkit.testing.bank.modules import Adapted, Partly, Rates, Scaled, Tied, Weights


def _classification(seed: int) -> tuple[list[Any], Any]:
    generator = torch.Generator().manual_seed(seed)
    batches = [
        (
            torch.randn(10, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (10,), generator=generator),
        )
        for _ in range(4)
    ]
    return batches[:3], batches[3]


def _cross_entropy(model: Any, meta: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def small_net(valid_mode: Any = None) -> ProblemInstance:
    """A network with BatchNorm and dropout; λ weights the examples and penalizes θ."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        penalty = meta.log_penalty.exp() * model[0].weight.square().sum()
        return (meta(losses) * losses).mean() + penalty

    with seeded(1):
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
        ).double()
        meta = Weights().double()
    problem = BilevelProblem(model, meta, train_loss, _cross_entropy, valid_mode)
    inner = SGD(lr=0.2, momentum=0.9, weight_decay=1e-2, nesterov=True)
    return ProblemInstance(problem, inner, *_classification(1), seed=5)


def dead_coordinates() -> ProblemInstance:
    """Adam over coordinates whose gradient is always zero: a feature that is zero everywhere."""
    instance = small_net()
    for inputs, _ in [*instance.train_batches, instance.valid_batch]:
        inputs[:, 2] = 0.0

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (meta(losses) * losses).mean()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return _cross_entropy(model, meta, batch) + meta.log_penalty.sin()

    given = instance.problem
    problem = BilevelProblem(given.model, given.meta, train_loss, valid_loss)
    inner = Adam(lr=0.05)
    return dataclasses.replace(instance, problem=problem, inner=inner)


def learned_rates() -> ProblemInstance:
    """λ in the optimizer alone: a tensor, functions of meta and a group of its own."""
    instance = small_net()
    meta = Rates()
    problem = BilevelProblem(instance.problem.model, meta, _cross_entropy, _cross_entropy)

    def momentum(meta: Any, step: int) -> Tensor:
        return torch.sigmoid(meta.logits[0]) * 0.9**step

    def weight_decay(meta: Any, step: int) -> Tensor:
        return meta.logits[1].exp()

    inner = SGD(
        lr=meta.lr,
        momentum=momentum,
        weight_decay=weight_decay,
        groups=[{"params": ["4.*"], "lr": lambda meta, step: 0.5 * meta.lr, "momentum": 0.3}],
    )
    return dataclasses.replace(instance, problem=problem, inner=inner)


def inside_model() -> ProblemInstance:
    """λ is a submodule of the model, and the outer loss depends on it directly."""

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return _cross_entropy(model, meta, batch) + 0.01 * meta.value.square().sum()

    with seeded(2):
        model = Scaled().double()
    problem = BilevelProblem(model, model.scale, _cross_entropy, valid_loss)
    groups = [{"params": ["last.*", "temperature"], "lr": 0.05, "momentum": 0.0}]
    inner = SGD(lr=0.3, momentum=0.9, groups=groups)
    return ProblemInstance(problem, inner, *_classification(2), seed=5)


def tied() -> ProblemInstance:
    """Tied weights; λ that the training loss, the outer loss or both ignore."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs = batch[0]
        errors = (model(inputs) - inputs).square().mean(0)
        return (meta.features.sigmoid() * errors).sum()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs = batch[0]
        return (model(inputs) - inputs).square().mean() + meta.direct.sin().sum()

    with seeded(4):
        model, meta = Tied().double(), Partly().double()
    problem = BilevelProblem(model, meta, train_loss, valid_loss)
    return ProblemInstance(problem, SGD(lr=0.1), *_classification(3), seed=5)


def initialized() -> ProblemInstance:
    """λ is the whole initial state, and nothing else depends on it."""
    instance = small_net()
    model = instance.problem.model
    problem = BilevelProblem(
        model,
        Initialization(model),
        _cross_entropy,
        _cross_entropy,
        initial=Initialization.values,
    )
    return dataclasses.replace(instance, problem=problem)


def adapted() -> ProblemInstance:
    """λ sets a part of the initial state and the strength that pulls θ to it (as in iMAML)."""
    instance = small_net()
    model = instance.problem.model
    meta = Adapted(model)

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        pull = (model[0].weight - meta.start.values()["0.weight"]).square().sum()
        return _cross_entropy(model, meta, batch) + meta.log_penalty.exp() * pull

    problem = BilevelProblem(model, meta, train_loss, _cross_entropy, initial=initial_values)
    return dataclasses.replace(instance, problem=problem)


def initial_values(meta: Adapted) -> dict[str, Tensor]:
    """The values of :func:`adapted`."""
    return meta.start.values()
