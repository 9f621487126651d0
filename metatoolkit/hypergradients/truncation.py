"""Truncation: the derivative through the last of several inner steps alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.trajectory import roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


def require_truncation(truncation: int | None, steps: int) -> None:
    """Raise unless a number of last steps is one of those that there are.

    Args:
        truncation: The number; ``None`` for all.
        steps: Number of inner steps.

    Raises:
        ConfigurationError: It is below 1 or above the number of steps.
    """
    if truncation is not None and not 1 <= truncation <= steps:
        raise ConfigurationError(
            f"truncation is {truncation} with steps={steps}; accepted: a number of last steps "
            f"from 1 to {steps}, or None for all."
        )


def truncated(traits: Traits, truncation: int | None, steps: int) -> Traits:
    """Return the traits of an estimator whose derivative goes through the last steps alone.

    Args:
        traits: Those of the estimator that goes through all.
        truncation: Number of last steps; ``None`` for all.
        steps: Number of inner steps.
    """
    if truncation is None or truncation == steps:
        return traits
    return dataclasses.replace(
        traits,
        kind="approximate",
        computes=f"derivative through the last {truncation} of T inner steps",
        assumes=f"{traits.assumes}; steps that forget where they started",
        passes=f"{traits.passes}; 3 F for each step before the last {truncation}",
        paper="Shaban et al. 2019, arXiv 1810.10667",
    )


def roll_out_truncated(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    meta: Tensors,
    batches: Sequence[Any],
    truncation: int | None,
) -> InnerState:
    """Return the state after inner steps of which the last ones alone see the λ given.

    Args:
        problem: Problem whose own λ the steps before these see.
        inner: Inner learner.
        state: State to start from.
        meta: Meta-parameters by name.
        batches: Training batches. Cost: 3 F each.
        truncation: Number of last steps; ``None`` for all.
    """
    skipped = 0 if truncation is None else len(batches) - truncation
    state = roll_out(problem, inner, state, problem.meta_parameters(), batches[:skipped])
    return roll_out(problem, inner, state, meta, batches[skipped:])
