"""A problem with its inner learner, its data and its first state: what an estimator is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState

Arguments = tuple[BilevelProblem, InnerLearner, InnerState, list[Any], Any]
"""What stands in a call of an estimator."""


@dataclasses.dataclass
class ProblemInstance:
    """A bilevel problem with inner learner, data and first state, for any estimator.

    As in optimization a problem becomes an instance by its data: estimators that are given the
    same instance estimate the same hypergradient.

    Attributes:
        problem: The bilevel problem.
        inner: Inner learner.
        train_batches: Training batches.
        valid_batch: Batch for the outer loss.
        start: State to start from; by default the learner's first one.
        seed: Seed of the random key of that first one.
    """

    problem: BilevelProblem
    inner: InnerLearner
    train_batches: Sequence[Any]
    valid_batch: Any
    start: InnerState | None = None
    seed: int = 0

    @property
    def state(self) -> InnerState:
        """The state to start from; without :attr:`start` made anew from the model."""
        return self.inner.init(self.problem, self.seed) if self.start is None else self.start

    def batches(self, steps: int) -> list[Any]:
        """Return one training batch per inner step, in turns where there are fewer.

        Args:
            steps: Number of inner steps.
        """
        return [self.train_batches[step % len(self.train_batches)] for step in range(steps)]

    def arguments(self, steps: int | None = None, state: InnerState | None = None) -> Arguments:
        """Return problem, inner learner, state, training batches and validation batch.

        Args:
            steps: Number of inner steps; by default one for each training batch.
            state: State to start from in the place of the instance's own.
        """
        batches = list(self.train_batches) if steps is None else self.batches(steps)
        start = self.state if state is None else state
        return self.problem, self.inner, start, batches, self.valid_batch

    def call(self, estimator: Estimator, state: InnerState | None = None) -> Hypergradient:
        """Return an estimator's result, with as many training batches as it takes.

        Args:
            estimator: The estimator.
            state: State to start from in the place of the instance's own.
        """
        return estimator(*self.arguments(estimator.horizon, state))
