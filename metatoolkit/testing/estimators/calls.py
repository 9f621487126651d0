"""How the checks of estimators build a problem and call an estimator on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from metatoolkit.errors import UnusedMetaParameterError
from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.state import InnerState
from metatoolkit.testing import bank
from metatoolkit.testing.expectations import Inapplicable


def build(problem: str) -> ProblemInstance:
    """Return a problem of the bank.

    Args:
        problem: Its name in :data:`~metatoolkit.testing.bank.CONFORMANCE`.
    """
    return bank.CONFORMANCE[problem]()


def call(
    instance: ProblemInstance,
    estimator: Estimator,
    problem: str = "",
    state: InnerState | None = None,
) -> Hypergradient:
    """Call an estimator that may not see λ where no loss reads it.

    Args:
        instance: What it is called with.
        estimator: The estimator.
        problem: Name of the problem.
        state: State to start from.

    Raises:
        Inapplicable: It does not see λ, which acts in the optimizer or the initial state.
    """
    with unseen(problem):
        return instance.call(estimator, state)


@contextlib.contextmanager
def unseen(problem: str) -> Iterator[None]:
    """Take it for no fault of an estimator that it does not see λ where no loss reads it.

    Args:
        problem: Name of the problem.

    Raises:
        Inapplicable: It does not see λ, which acts in the optimizer or the initial state.
    """
    try:
        yield
    except UnusedMetaParameterError:
        if problem not in bank.OUTSIDE_LOSSES:
            raise
        raise Inapplicable(
            "unsupported: λ is in the optimizer or the initial state alone"
        ) from None
