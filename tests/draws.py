"""A problem that writes down which random numbers each of its evaluations draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import metatoolkit as mt
from tests import bank


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One call of a loss: which one, at which θ, on which batch, with which random number."""

    kind: str
    batch: Any
    draw: float
    theta: float


@dataclasses.dataclass
class Recorded(bank.Case):
    """A case with all evaluations of its losses so far, in order."""

    seen: list[Evaluation] = dataclasses.field(default_factory=list)

    def draws(self, kind: str) -> list[float]:
        """The random numbers of the evaluations of one loss."""
        return [one.draw for one in self.seen if one.kind == kind]


def recorded(rate: float = 0.1, inner: Any = None) -> Recorded:
    """L_T = ½ θ² + b λ θ below L_V = ½ (θ − b)², with the batch b a number; 0-d and in float64.

    A step of SGD is θ ← (1 − lr) θ − lr b λ, whatever is drawn.
    """
    seen: list[Evaluation] = []

    def note(kind: str, theta: Tensor, batch: Any) -> None:
        draw = float(torch.rand((), dtype=torch.float64))
        value = theta.detach()
        if torch._C._functorch.is_batchedtensor(value):
            return
        seen.append(Evaluation(kind, batch, draw, float(value)))

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        note("train", model.value, batch)
        return model.value.square() / 2 + batch * meta.value * model.value

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        note("valid", model.value, batch)
        return (model.value - batch).square() / 2

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(-0.4), train_loss, valid_loss)
    inner = inner or mt.inner.SGD(lr=rate)
    return Recorded(problem, inner, [1.0, 2.0, 3.0], 0.25, seen=seen)


def check_draws(make: Any) -> None:
    """Check which random numbers the evaluations of one call draw, and on which batches.

    A training loss at step t draws what the inner step t draws on the same batch; the outer loss
    draws otherwise; and both draw anew at another step and in another run.
    """
    case = recorded()
    first, meta = case.state, case.problem.meta_parameters()
    before: set[float] = set()
    later, _ = case.inner.step(case.problem, first, meta, case.train_batches[0])
    for state in (first, later, case.inner.init(case.problem, seed=6)):
        estimator = make()
        batches = case.batches(estimator.horizon)
        case.seen.clear()
        at = state
        # What looks at the state that is reached does so on the last batch.
        for batch in [*batches, batches[-1]]:
            at, _ = case.inner.step(case.problem, at, meta, batch)
        steps = {(one.batch, one.draw) for one in case.seen}
        case.seen.clear()
        case.call(estimator, state)
        train = {(one.batch, one.draw) for one in case.seen if one.kind == "train"}
        assert train <= steps, "a training loss has the masks of another step"
        assert {batch for batch, _ in train} == set(batches), "a batch was left out"
        valid = set(case.draws("valid"))
        assert valid and not valid & {draw for _, draw in steps}
        assert {one.batch for one in case.seen if one.kind == "valid"} == {case.valid_batch}
        fresh = valid | {draw for _, draw in train}
        if state is not later:
            assert not fresh & before, "another run draws the same"
        before |= fresh
