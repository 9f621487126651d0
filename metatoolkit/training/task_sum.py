"""The mean result of tasks, of which some may come together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.base import Cost, Hypergradient
from metatoolkit.state import InnerState, Tensors
from metatoolkit.training.task_rules import Observed, added


class TaskSum:
    """Adds up the results of tasks, of which it keeps no more than it must."""

    def __init__(self) -> None:
        self._gradient: Tensors = {}
        self._losses: dict[int, Tensor] = {}
        self._states: dict[int, InnerState] = {}
        self._costs: list[Cost] = []
        self._observed: list[Observed] = []

    def add(
        self,
        tasks: Sequence[int],
        result: Hypergradient,
        losses: Tensor,
        states: Sequence[InnerState] = (),
        observed: Sequence[Observed] = (),
    ) -> None:
        """Take in the mean result of further tasks.

        Args:
            tasks: Their numbers.
            result: The mean, with the cost of all of them.
            losses: Their outer losses, of shape (tasks,).
            states: The states that they reached, where these are kept.
            observed: What each adds to parts of λ with a rule of their own, where there are any.
        """
        count = len(tasks)
        weighted = {name: g if count == 1 else count * g for name, g in result.gradient.items()}
        if not self._losses:
            self._gradient = weighted
        else:
            self._gradient = {name: g + weighted[name] for name, g in self._gradient.items()}
        self._losses.update(zip(tasks, losses, strict=True))
        self._states.update(zip(tasks, states, strict=False))
        self._costs.append(result.cost)
        if observed:
            self._observed = [added([*self._observed, *observed])]

    def mean(self, start: InnerState, details: dict[str, Any]) -> Hypergradient:
        """Return the mean of all results, with losses and states in the order of the tasks.

        Args:
            start: State that the tasks began at.
            details: What else there is to tell.
        """
        losses = torch.stack([self._losses[task] for task in sorted(self._losses)])
        states = [self._states[task] for task in sorted(self._states)]
        kept: dict[str, Any] = {"states": states} if states else {}
        if self._observed:
            kept |= {"observed": self._observed[0]}
        return Hypergradient(
            gradient={name: total / len(losses) for name, total in self._gradient.items()},
            valid_loss=losses.mean(),
            state=start,
            cost=total_cost(self._costs),
            details={"task_losses": losses, **details, **kept},
        )


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs, with the largest residual.

    Args:
        costs: Costs of calls, at least one.
    """
    residuals = [cost.residual for cost in costs if cost.residual is not None]
    iterations = [cost.iterations for cost in costs if cost.iterations is not None]
    return Cost(
        forward=sum(cost.forward for cost in costs),
        backward=sum(cost.backward for cost in costs),
        jvp=sum(cost.jvp for cost in costs),
        hvp=sum(cost.hvp for cost in costs),
        residual=max(residuals, default=None),
        iterations=sum(iterations) if iterations else None,
    )
