"""What a hypergradient of another library needs to answer to the interface of the estimators."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Cost, Estimator, Hypergradient, Traits, Unrolled
from metatoolkit.hypergradients.base import fill_gradients
from metatoolkit.inner import SGD, InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.state import InnerState, Tensors

Result = tuple[Tensor, Sequence[Tensor | None]]
"""The outer loss, detached, and its gradient in each parameter of λ, ``None`` where none flows."""


class Peer(Estimator):
    """Reverse mode through plain SGD by another library, from a private copy of the problem.

    The copy is made before the measured call where it can be; the learning rate must be a number,
    or a schedule of numbers. Weight decay is not looked at, since peers' steps have none.

    Args:
        steps: Number of inner steps.
    """

    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="plain SGD",
        passes="as the library has it",
        memory="the graph of all steps",
        paper="a peer",
    )

    cost = Cost()
    """What a call is said to cost; peers count nothing, but their FLOPs are measured."""

    def __init__(self, steps: int = 1) -> None:
        self.horizon = steps

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the peer's hypergradient.

        Raises:
            ConfigurationError: The inner learner is not plain SGD with a number as learning rate.
        """
        found = self._rate(problem, inner, state)
        own = copy.deepcopy(problem)
        own.load(state)
        devices = {tensor.device for tensor in state.parameters.values()}
        with seeded(fold_in(state.key, state.step), devices), warnings.catch_warnings():
            # What a peer's sources warn of is no news here.
            warnings.simplefilter("ignore")
            loss, gradients = self._run(own, found, train_batches, valid_batch)
        named = dict(zip(own.meta_parameter_names, gradients, strict=True))
        return Hypergradient(
            gradient=fill_gradients(problem, named, "train_loss and valid_loss"),
            valid_loss=loss,
            state=state,
            cost=self.cost,
        )

    def _rate(self, problem: BilevelProblem, inner: InnerLearner, state: InnerState) -> Any:
        """Return the learning rate of the inner step, if the step is one that peers take."""
        plain = isinstance(inner, SGD) and not inner.has_momentum and not inner.groups
        rate = inner.hyperparameters.get("lr") if plain else None
        found = rate(problem.meta, state.step) if callable(rate) else rate
        if not isinstance(found, int | float):
            raise ConfigurationError(
                f"the inner step of {type(self).__name__} is plain SGD with a number as learning "
                "rate; give SGD(lr=...) without momentum or groups, or use metatoolkit's Unrolled."
            )
        return found

    @abstractmethod
    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        """Return the outer loss and its gradient in λ; the problem is a copy to be changed."""

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
        """Return the outer loss after the inner steps, as ``Unrolled`` defines it."""
        return Unrolled(self.horizon).objective(
            problem, inner, state, train_batches, valid_batch, meta
        )
