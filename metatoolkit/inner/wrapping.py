"""Inner learners that leave the step to others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Hyperparameter
from metatoolkit.inner.traits import is_own
from metatoolkit.state import Tensors


class WrappingLearner(InnerLearner):
    """What inner learners share that take their step by others, each of a whole state.

    Args:
        learners: Learners that take the step; their groups are those of this one.

    Raises:
        ConfigurationError: Something is no inner learner that takes its step from one gradient.
    """

    hyperparameters: dict[str, Hyperparameter]

    def __init__(self, learners: Sequence[InnerLearner]) -> None:
        for learner in learners:
            if not isinstance(learner, InnerLearner) or is_own(learner, InnerLearner, "step"):
                raise ConfigurationError(
                    f"{learner!r} cannot be {type(self).__name__.lower()}; accepted: an inner "
                    "learner that takes its step from one gradient, for instance SGD(lr=0.1)."
                )
        self.groups = [group for learner in learners for group in learner.groups]

    @override
    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.options().items())
        return f"{type(self).__name__}({values})"


class GradientWrapper(WrappingLearner):
    """What inner learners share that change the gradients in front of another one.

    Args:
        inner: Inner learner that takes the step.

    Raises:
        ConfigurationError: It is no inner learner that takes its step from one gradient.
    """

    def __init__(self, inner: InnerLearner) -> None:
        super().__init__([inner])
        self.inner = inner
        self.hyperparameters = inner.hyperparameters

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the optimizer state of the learner that takes the step."""
        return self.inner.init_slots(parameters)

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the learner makes of a gradient that is already changed."""
        return self.inner.update(parameter, gradient, slots, hyperparameters, step)
