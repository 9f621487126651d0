"""Steps that are taken back: the hypergradient of Unrolled, bit for bit, in little memory."""

from __future__ import annotations

import dataclasses
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt
from metatoolkit.errors import ReplayError, UnsupportedError
from metatoolkit.hypergradients import ProblemInstance, Reversible, Unrolled
from metatoolkit.hypergradients.replay_check import unchecked
from metatoolkit.inner import SGD, InnerLearner, ReversibleMomentum
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import seeded
from metatoolkit.testing import bank, estimator_checks
from tests.hypergradients.given_bank import give_bank

T = 6


def reversible(inner: InnerLearner) -> InnerLearner:
    lr = inner.hyperparameters["lr"]
    return ReversibleMomentum(lr, 0.9, inner.groups if callable(lr) else ())


@pytest.mark.parametrize("check", estimator_checks(), ids=str)
def test_conforms_with_its_learner(monkeypatch, check):
    """The suite over all estimators, on problems that have the learner it takes."""
    give_bank(monkeypatch, reversible)
    reason = check(lambda: Reversible(3))
    if reason:
        assert "ReversibleMomentum" not in reason
        pytest.skip(reason)


def same(instance: ProblemInstance, steps: int = T) -> None:
    found, wanted = instance.call(Reversible(steps)), instance.call(Unrolled(steps))
    for name, gradient in wanted.gradient.items():
        assert torch.equal(found.gradient[name], gradient), name
    assert any(bool(gradient.any()) for gradient in wanted.gradient.values())
    assert torch.equal(found.valid_loss, wanted.valid_loss)
    for one, other in zip(found.state.tensors(), wanted.state.tensors(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", bank.CONFORMANCE)
def test_it_is_unrolled_bit_for_bit(name):
    instance = bank.CONFORMANCE[name]()
    same(dataclasses.replace(instance, inner=reversible(instance.inner)), 15)


class Settings(nn.Module):
    """Learning rates of six steps, momentum, and the strength of a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.full((T,), -1.0).double())
        self.logit = nn.Parameter(torch.full((2,), 2.0).double())
        self.penalty = nn.Parameter(torch.tensor(-3.0).double())


def settings() -> ProblemInstance:
    given = bank.small_net()

    def train_loss(model: nn.Module, meta: Settings, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = meta.penalty.exp() * model[0].weight.square().sum()
        return F.cross_entropy(model(batch[0]), batch[1]) + penalty

    def valid_loss(model: nn.Module, meta: Settings, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    inner = ReversibleMomentum(
        lambda meta, step: meta.rates[step % T].exp(),
        lambda meta, step: meta.logit[0].sigmoid(),
        [{"params": ["*.bias"], "momentum": lambda meta, step: meta.logit[1].sigmoid() * 0.9}],
    )
    problem = BilevelProblem(given.problem.model, Settings(), train_loss, valid_loss)
    return dataclasses.replace(given, problem=problem, inner=inner)


def test_rates_momenta_and_penalties_are_learned_exactly():
    """λ in the optimizer and the loss, against Unrolled and against differences in float64."""
    instance = settings()
    same(instance)
    problem, inner, state, batches, valid = instance.arguments(T)
    found = mt.check_hypergradient(
        problem, inner, Reversible(T), batches, valid, state, coordinates=4
    )
    assert found.verdict == "agrees", found
    assert found.relative_error < 1e-5


@pytest.mark.parametrize(("momentum", "steps"), [(0.9, 1000), (0.5, 150), (0.98, 150), (0.99, 150)])
def test_steps_lead_back_to_the_first_state(momentum, steps):
    """The call itself compares all integers of the first state; the store takes the entropy.

    A thousand steps are what the method is for, and take some seconds.
    """
    instance = bank.ridge()
    instance.inner = ReversibleMomentum(0.05, momentum)
    state = instance.state
    kept = [tensor.clone() for slot in state.optimizer.values() for tensor in slot.values()]
    found = instance.call(Reversible(steps), state)
    after = [tensor for slot in state.optimizer.values() for tensor in slot.values()]
    assert all(map(torch.equal, kept, after))
    details = found.details
    bound = math.log2(1 / momentum)
    assert details["entropy"] == pytest.approx(bound, rel=1e-6)
    assert abs(steps * (details["bits"] - bound)) <= 2 + 0.005 * steps * bound
    count = sum(p.numel() for p in state.parameters.values())
    assert 8 * details["bytes"] <= steps * count * bound
    assert details["trajectory_bytes"] == steps * count * 16
    assert details["bytes"] * 60 < details["trajectory_bytes"]
    assert details["momentum"] == {n: pytest.approx(momentum, abs=5e-10) for n in state.parameters}


def test_plain_floating_point_numbers_do_not_lead_back():
    """What the fixed-point numbers are for: v = (v' − (1 − γ) g) / γ in float64 explodes."""
    matrix = torch.diag(torch.linspace(0.001, 0.02, 5).double())
    start = torch.zeros(5).double()
    place, speed = start, start
    for _ in range(500):
        speed = 0.9 * speed + 0.1 * (matrix @ (place - 1))
        place = place - speed
    for _ in range(500):
        place = place + speed
        speed = (speed - 0.1 * (matrix @ (place - 1))) / 0.9
    assert not float((place - start).abs().max()) < 1


def test_states_in_the_middle_and_parameters_of_low_precision_lead_back():
    for dtype in (torch.float32, torch.bfloat16):
        instance = settings()
        instance.problem.model.to(dtype)
        cast = [(inputs.to(dtype), targets) for inputs, targets in instance.train_batches]
        instance = dataclasses.replace(
            instance,
            train_batches=cast,
            valid_batch=(instance.valid_batch[0].to(dtype), instance.valid_batch[1]),
        )
        problem, inner, state, batches, _ = instance.arguments(5)
        for batch in batches:
            state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        instance = dataclasses.replace(instance, start=state)
        same(instance, 7)


def attention() -> ProblemInstance:
    """A convolution with BatchNorm, attention, layer norm, dropout and a part that is skipped."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm1d(8)
            self.mix = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)
            self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

        def forward(self, inputs: Tensor, head: int) -> Tensor:
            hidden = self.norm(self.conv(inputs)).relu().transpose(1, 2)
            return self.heads[head](self.mix(hidden).mean(1))

    def train_loss(model: nn.Module, meta: nn.Module, batch: tuple[Tensor, int]) -> Tensor:
        inputs, head = batch
        return meta.value * F.cross_entropy(model(inputs, head), torch.arange(6) % 3)

    def valid_loss(model: nn.Module, meta: nn.Module, batch: tuple[Tensor, int]) -> Tensor:
        return train_loss(model, meta, batch) / meta.value.detach()

    with seeded(3):
        problem = BilevelProblem(Model(), bank.Value(1.0), train_loss, valid_loss)
        problem.meta.float()
        batches = [(torch.randn(6, 3, 10), step % 2) for step in range(4)]
    inner = ReversibleMomentum(0.1, 0.9)
    return ProblemInstance(problem, inner, batches, (batches[0][0], 0), seed=2)


def test_layers_of_many_kinds_in_float32_lead_back():
    same(attention(), 8)


def test_buffers_that_the_loss_reads_are_those_of_the_step():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3).double())
            self.register_buffer("seen", torch.ones(()).double())

        def forward(self, inputs: Tensor) -> Tensor:
            found = (inputs * self.weight / self.seen).sum()
            self.seen = self.seen + inputs.abs().sum()
            return found

    def loss(model: nn.Module, meta: nn.Module, batch: Tensor) -> Tensor:
        return meta.value * (model(batch) - 1).square()

    problem = BilevelProblem(Counting(), bank.Value(1.0), loss, loss)
    batches = [torch.full((3,), 0.1 * (i + 1)).double() for i in range(3)]
    same(ProblemInstance(problem, ReversibleMomentum(0.3, 0.9), batches, batches[0]))


def test_tasks_side_by_side_are_those_of_a_loop():
    instance = bank.initialized()
    inner = ReversibleMomentum(0.1, 0.9)
    inputs, labels = instance.train_batches[0]
    tasks = [(inputs + i, labels) for i in range(3)]
    support = tuple(map(torch.stack, zip(*tasks, strict=True)))
    pair = (support, support)
    arguments = (instance.problem, inner, Reversible(3), pair)
    loop, stacked = (mt.over_tasks(*arguments, batching=mode) for mode in ("loop", "vmap"))
    for name, gradient in loop.gradient.items():
        torch.testing.assert_close(stacked.gradient[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inner", [SGD(0.1, momentum=0.9), "changed"])
def test_other_learners_are_refused(inner):
    class Changed(ReversibleMomentum):
        def update(self, *args):
            return super().update(*args)

    instance = bank.ridge()
    instance.inner = Changed(0.1) if inner == "changed" else inner
    with pytest.raises(
        UnsupportedError, match=r"whose steps can be taken back.*ReversibleMomentum"
    ):
        instance.call(Reversible(2))


@pytest.mark.parametrize("size", [1e-3, 1e-13])
def test_a_gradient_that_is_another_one_the_second_time_is_told(size):
    """Also one that no comparison of losses sees: the last bits of a gradient."""
    instance = bank.ridge()
    calls = 0

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            nonlocal calls
            calls += 1
            return gradient * (1 + size * calls)

    given = instance.problem

    def train_loss(model, meta, batch):
        return Noisy.apply(given.train_loss(model, meta, batch))

    problem = BilevelProblem(given.model, given.meta, train_loss, given.valid_loss)
    instance = dataclasses.replace(instance, problem=problem, inner=ReversibleMomentum(0.1, 0.9))
    with unchecked(), pytest.raises(ReplayError, match="does not lead to the state"):
        instance.call(Reversible(100))


def test_few_states_are_alive_however_many_steps(monkeypatch):
    """At no step are there more tensors of the parameters' shape than at another horizon."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    counts: list[int] = []
    step = ReversibleMomentum.update

    def watched(self, parameter, *rest):
        moved, slots = step(self, parameter, *rest)
        for tensor in (moved, *slots.values()):
            alive.add(tensor)
        counts.append(len(alive))
        return moved, slots

    monkeypatch.setattr(ReversibleMomentum, "update", watched)
    most = []
    for steps in (5, 40):
        instance = bank.ridge()
        instance.inner = ReversibleMomentum(0.1, 0.9)
        counts.clear()
        instance.call(Reversible(steps))
        most.append(max(counts))
    assert most[0] == most[1] <= 20
