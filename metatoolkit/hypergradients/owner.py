"""To which problem and trajectory something belongs that an estimator carries from call to call."""

from __future__ import annotations

import dataclasses
from typing import Any

from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState


@dataclasses.dataclass(frozen=True)
class Owner:
    """A problem, and a trajectory by its random key; ``None`` where it is not known.

    A problem that is made again after a checkpoint is another object: what was saved then belongs
    to the first one that it fits. Copies of a problem are the same one.

    Attributes:
        problem: Identity of the problem.
        key: Random key of the trajectory; ``None`` for any.
    """

    problem: str | None = None
    key: int | None = None

    @staticmethod
    def of(problem: BilevelProblem, state: InnerState | None = None) -> Owner:
        """Return the owner of what is carried from a call.

        Args:
            problem: The bilevel problem.
            state: State of the trajectory; ``None`` where any of the problem will do.
        """
        return Owner(problem.identity, None if state is None else state.key)

    def fits(self, problem: BilevelProblem, state: InnerState) -> bool:
        """Return whether what is carried may be used in a call.

        Args:
            problem: The bilevel problem.
            state: State of the call.
        """
        return self.problem in (None, problem.identity) and self.key in (None, state.key)

    def state_dict(self) -> dict[str, Any]:
        """Return what of it holds after a checkpoint: the key."""
        return {} if self.key is None else {"key": self.key}
