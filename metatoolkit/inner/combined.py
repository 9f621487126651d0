"""Several inner learners side by side, each for its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import override

from metatoolkit.components.patterns import matches, matching
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.registry import learners
from metatoolkit.inner.wrapping import WrappingLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@learners.register()
class Combined(WrappingLearner):
    """Inner learners side by side, such as Muon for matrices and AdamW for everything else.

    Args:
        default: Learner of the parameters that no pattern matches.
        exceptions: Name pattern (as in :mod:`fnmatch`) to the learner of the parameters that it
            matches; the first one holds.

    Raises:
        ConfigurationError: There is no exception, or something is no inner learner that takes its
            step from one gradient.

    Example:
        >>> from metatoolkit.inner import SGD, AdamW
        >>> Combined(SGD(lr=0.1), {"*.bias": AdamW()}).learner_of("head.bias") is not None
        True
    """

    def __init__(self, default: InnerLearner, exceptions: Mapping[str, InnerLearner]) -> None:
        self.default = default
        self.exceptions = dict(exceptions)
        if not self.exceptions:
            raise ConfigurationError("exceptions is empty; use the default learner as it is.")
        super().__init__(self._learners())
        self.hyperparameters = {}
        for place, learner in {"default": default, **self.exceptions}.items():
            for name, value in learner.hyperparameters.items():
                known = f"{name} of {type(learner).__name__}"
                # Two of a kind keep apart what λ may be.
                known = f"{known} ({place})" if known in self.hyperparameters else known
                self.hyperparameters[known] = value

    def _learners(self) -> list[InnerLearner]:
        return [self.default, *self.exceptions.values()]

    def learner_of(self, name: str) -> InnerLearner:
        """Return the learner that moves a parameter.

        Args:
            name: Name of the parameter.
        """
        for pattern, learner in self.exceptions.items():
            if matches(name, [pattern]):
                return learner
        return self.default

    def _parts(self, values: Mapping[str, Any]) -> list[tuple[InnerLearner, dict[str, Any]]]:
        """Return what belongs to each learner of a mapping from names of parameters."""
        learners = {name: self.learner_of(name) for name in values}
        distinct = {id(learner): learner for learner in self._learners()}
        return [
            (learner, {name: v for name, v in values.items() if learners[name] is learner})
            for learner in distinct.values()
        ]

    @override
    def check(self, problem: BilevelProblem) -> None:
        """Raise unless each learner fits the parameters that it moves.

        Raises:
            ConfigurationError: A pattern matches no inner parameter, or a learner moves none.
        """
        matching("exceptions", self.exceptions, problem.parameter_names, "inner parameter")
        for learner, own in self._parts(dict.fromkeys(problem.parameter_names)):
            if not own:
                raise ConfigurationError(
                    f"{learner} moves no inner parameter, since the patterns of others match all "
                    f"of them ({', '.join(problem.parameter_names[:5])}); leave it out."
                )
            InnerLearner.check(learner, problem)

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the optimizer state of each learner for its parameters."""
        slots: dict[str, Tensors] = {}
        for learner, own in self._parts(parameters):
            for slot, tensors in learner.init_slots(own).items():
                slots[slot] = slots.get(slot, {}) | tensors
        return slots

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Raise: which learner moves a parameter is known by its name alone.

        Args:
            parameter: Not read.
            gradient: Not read.
            slots: Not read.
            hyperparameters: Not read.
            step: Not read.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("Combined moves whole states; call apply or step.")

    def _split(
        self, state: InnerState, gradients: Tensors
    ) -> list[tuple[InnerLearner, InnerState, Tensors]]:
        """Return each learner with its part of a state and of the gradients."""
        parts = []
        for learner, parameters in self._parts(state.parameters):
            optimizer = {
                slot: own
                for slot, values in state.optimizer.items()
                if (own := {name: t for name, t in values.items() if name in parameters})
            }
            part = state.replaced(parameters=parameters, optimizer=optimizer)
            found = {name: g for name, g in gradients.items() if name in parameters}
            parts.append((learner, part, found))
        return parts

    @override
    def apply(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> InnerState:
        """Return the state after each learner's update of its parameters."""
        parameters = dict(state.parameters)
        optimizer = {slot: dict(values) for slot, values in state.optimizer.items()}
        missed = dict(state.missed)
        for learner, part, found in self._split(state, gradients):
            after = learner.apply(problem, part, meta, found)
            parameters |= after.parameters
            for slot, values in after.optimizer.items():
                optimizer[slot] |= values
            missed |= {n: count for n, count in after.missed.items() if n in part.parameters}
        return state.replaced(
            parameters=parameters, optimizer=optimizer, step=state.step + 1, missed=missed
        )

    @override
    def gradient_sensitivity(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> Tensors:
        """Return ∂θ⁺/∂g of each learner for its parameters; see :class:`InnerLearner`."""
        found: Tensors = {}
        for learner, part, own in self._split(state, gradients):
            found |= learner.gradient_sensitivity(problem, part, meta, own)
        return found

    @override
    def options(self) -> dict[str, Any]:
        """Return the learners."""
        return {"default": self.default, "exceptions": self.exceptions}
