"""What EvoGrad and its guided variant share: candidates for θ that the training loss scores."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from metatoolkit.components.patterns import check_listed, matching
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Estimator, Hypergradient, refuse_initial_state
from metatoolkit.hypergradients.custom_functions import observable
from metatoolkit.hypergradients.prefix import Prefix, share_prefix
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


class ScoredCandidates(Estimator):
    """What estimators share that weight candidates for θ by a softmax of their training losses.

    Args:
        sigma: Size of the perturbations σ; ``None`` where it is chosen in each call.
        temperature: Temperature τ of the softmax.
        rescale: Learning rate of the one-step update whose hypergradient is estimated; ``None``
            leaves the scale that follows from σ and τ.
        perturb: Name patterns of the inner parameters to perturb; ``None`` for all.
        prefix: Function ``(model, meta, batch) -> features`` of what stands before them.

    Raises:
        ConfigurationError: A number is out of range, or ``perturb`` or ``prefix`` is of another
            kind.
    """

    complex_parameters = False
    # It compares by itself: candidates have a key in common, and are not to be held for it.
    compared = ()

    def __init__(
        self,
        sigma: float | None,
        temperature: float,
        rescale: float | None,
        perturb: Sequence[str] | None,
        prefix: Prefix | None,
    ) -> None:
        for name, value in (("sigma", sigma), ("temperature", temperature), ("rescale", rescale)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; a number above 0 is needed.")
        check_listed("perturb", perturb)
        if prefix is not None and not callable(prefix):
            raise ConfigurationError(
                f"prefix is {prefix!r}; accepted: None, or a function (model, meta, batch) -> "
                "features."
            )
        self.temperature = temperature
        self.rescale = rescale
        self.perturb = perturb
        self.prefix = prefix

    @property
    def learning_rate(self) -> float:
        """Learning rate of the one-step update whose hypergradient the estimate scales with."""
        return self._own_learning_rate if self.rescale is None else self.rescale

    @property
    @abstractmethod
    def _own_learning_rate(self) -> float:
        """That without ``rescale``."""

    @property
    def _factor(self) -> float:
        return 1.0 if self.rescale is None else self.rescale / self._own_learning_rate

    def _names(self, parameters: Tensors) -> list[str]:
        """Return the inner parameters to perturb."""
        if self.perturb is None:
            return list(parameters)
        return matching("perturb", self.perturb, parameters, "inner parameter")

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the estimate; see the class."""
        del inner
        (batch,) = train_batches
        who = type(self).__name__
        refuse_initial_state(problem, state, who, "perturbs θ around a state that it holds")
        meta = problem.meta_leaves()
        shared, batch, valid_batch = self._shared(problem, state, meta, batch, valid_batch)
        with observable() if self._holds else contextlib.nullcontext():
            result = self._estimate(shared, state, meta, batch, valid_batch, problem)
        if self.prefix is None:
            return result
        # Its passes are counted; the others are then passes of what follows it.
        cost = dataclasses.replace(result.cost, forward=result.cost.forward + 2)
        return dataclasses.replace(result, cost=cost)

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
        """Return the function of λ whose derivative the estimate is; see the class."""
        del inner
        (batch,) = train_batches
        shared, batch, valid_batch = self._shared(problem, state, meta, batch, valid_batch)
        return self._objective(shared, state, meta, batch, valid_batch)

    def _shared(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> tuple[BilevelProblem, Any, Any]:
        """Return problem and batches as candidates take them: features where there is a prefix."""
        if self.prefix is None:
            return problem, batch, valid
        names = self._names(state.parameters)
        return share_prefix(self.prefix, problem, state, meta, names, batch, valid)

    @property
    @abstractmethod
    def _holds(self) -> bool:
        """Whether candidates share what the training loss detaches."""

    @abstractmethod
    def _estimate(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        valid_batch: Any,
        given: BilevelProblem,
    ) -> Hypergradient:
        """Return the estimate for a problem as candidates take it, and the one that was given."""

    @abstractmethod
    def _objective(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> Tensor:
        """Return the function of λ for a problem as candidates take it."""
