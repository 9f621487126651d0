"""What forward-mode estimators share: tangents along directions in λ go along with the steps."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    add_gradients,
    fill_gradients,
)
from metatoolkit.hypergradients.tangents import Directions, TangentBundle
from metatoolkit.hypergradients.trajectory import outer_gradient, outer_loss, roll_out
from metatoolkit.hypergradients.truncation import roll_out_truncated
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@dataclasses.dataclass(frozen=True)
class Probes:
    """Directions in λ, and what the derivatives along them tell of the gradient.

    Attributes:
        directions: The directions.
        count: Number of directions.
        combine: Turns the derivatives of the outer loss through the steps along the directions,
            of the shape (count,), into a gradient by name. The direct one in λ is added to it.
    """

    directions: Directions
    count: int
    combine: Callable[[Tensor], Tensors]


class ForwardEstimator(Estimator):
    """What estimators share that carry derivatives forward through the inner steps.

    Attributes:
        chunk: Number of directions that a step is differentiated along at a time.
        truncation: Number of last steps that are differentiated; ``None`` for all.
    """

    chunk: int
    truncation: int | None = None

    @abstractmethod
    def _probes(self, problem: BilevelProblem, state: InnerState) -> Probes:
        """Return the directions of a call."""

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the derivative of the outer loss after T steps; see the class.

        Raises:
            UnsupportedError: See :class:`~metatoolkit.hypergradients.tangents.TangentBundle`.
            UnusedMetaParameterError: No loss and no hyper-parameter depends on λ.
        """
        probes = self._probes(problem, state)
        meta = problem.meta_leaves()
        skipped = 0 if self.truncation is None else len(train_batches) - self.truncation
        state = roll_out(problem, inner, state, meta, train_batches[:skipped])
        steps = train_batches[skipped:]
        bundle = TangentBundle(
            problem, inner, state, meta, probes.directions, probes.count, self.chunk, len(steps)
        )
        for batch in steps:
            bundle.step(batch)
        loss, adjoint, direct = outer_gradient(problem, bundle.state, meta, valid_batch)
        through: dict[str, Tensor | None] = dict.fromkeys(meta)
        found = probes.combine(bundle.slopes(adjoint))
        through |= {name: found[name] for name in bundle.reached}
        total = add_gradients(list(meta), list(through.values()), direct)
        passes = len(train_batches) + 1
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=loss,
            state=bundle.state,
            cost=Cost(forward=passes, backward=passes, jvp=bundle.products),
        )

    @override
    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the outer loss after T steps from ``state`` under ``meta``.

        With a truncation, the steps before the last ones run under the problem's own λ.
        """
        final = roll_out_truncated(problem, inner, state, meta, train_batches, self.truncation)
        return outer_loss(problem, final, meta, valid_batch)
