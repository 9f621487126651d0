"""A problem that writes down which random numbers each of its evaluations draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing.bank import Value


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One call of a loss: which one, at which θ, on which batch, with which random number."""

    kind: str
    batch: Any
    draw: float
    theta: float


@dataclasses.dataclass
class Recorded(ProblemInstance):
    """An instance with all evaluations of its losses so far, in order."""

    seen: list[Evaluation] = dataclasses.field(default_factory=list)

    def draws(self, kind: str) -> list[float]:
        """Return the random numbers of the evaluations of one loss.

        Args:
            kind: ``"train"`` or ``"valid"``.
        """
        return [one.draw for one in self.seen if one.kind == kind]


def recorded(rate: float = 0.1, inner: Any = None) -> Recorded:
    """L_T = ½ θ² + b λ θ below L_V = ½ (θ − b)², with the batch b a number; 0-d and in float64.

    A step of SGD is θ ← (1 − lr) θ − lr b λ, whatever is drawn.

    Args:
        rate: Learning rate of SGD.
        inner: Another inner learner.
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

    problem = BilevelProblem(Value(0.7), Value(-0.4), train_loss, valid_loss)
    inner = inner or SGD(lr=rate)
    return Recorded(problem, inner, [1.0, 2.0, 3.0], 0.25, seed=5, seen=seen)
