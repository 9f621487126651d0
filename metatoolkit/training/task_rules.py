"""The parts of λ that move by rules of their own, which tasks are observed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters.task_rule import TaskRule
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

Observed = dict[str, Tensors]
"""What tasks add, by the name of the part of λ and a name of the part's own."""


class TaskRules:
    """The parts of λ that move by rules of their own.

    Args:
        meta: The module of meta-parameters.
    """

    def __init__(self, meta: nn.Module) -> None:
        self._rules = {n: part for n, part in meta.named_modules() if isinstance(part, TaskRule)}

    def __len__(self) -> int:
        """Return their number."""
        return len(self._rules)

    def parameters(self) -> Tensors:
        """Return the tensors that the rules move, by their names in λ."""
        return {
            f"{name}.{own}".lstrip("."): parameter
            for name, rule in self._rules.items()
            for own, parameter in rule.named_parameters()
            if not parameter.requires_grad
        }

    def observe(self, start: InnerState, final: InnerState) -> Observed:
        """Return what one task adds.

        Args:
            start: State that the task began at.
            final: State that it reached.
        """
        with torch.no_grad():
            return {name: rule.observe(start, final) for name, rule in self._rules.items()}

    def take_in(self, details: Sequence[Mapping[str, Any]]) -> None:
        """Move by batches of tasks that all began at the same λ.

        Args:
            details: What :func:`metatoolkit.over_tasks` tells of each batch.
        """
        if not self._rules or not details:
            return
        total = added([told["observed"] for told in details])
        tasks = sum(len(told["task_losses"]) for told in details)
        with torch.no_grad():
            for name, rule in self._rules.items():
                rule.take_in(total[name], tasks)


def added(parts: Sequence[Observed]) -> Observed:
    """Return the sum of what tasks add.

    Args:
        parts: What each adds, at least one.
    """
    total, *others = parts
    for other in others:
        total = {
            name: {own: tensor + other[name][own] for own, tensor in tensors.items()}
            for name, tensors in total.items()
        }
    return total


def refuse_rules_of_tasks(problem: BilevelProblem) -> None:
    """Raise where a part of λ would never move, since there are no tasks that move it.

    Args:
        problem: Problem of a training that does not learn across tasks.

    Raises:
        ConfigurationError: There is such a part.
    """
    names = ", ".join(TaskRules(problem.meta).parameters())
    if names:
        raise ConfigurationError(
            f"{names[:80]} move by what tasks come to, but this trainer has none; pass "
            "tasks='auto', with batches of tasks."
        )
