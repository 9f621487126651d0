"""Problems that the checks of inner learners put a learner into, and runs of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from metatoolkit.errors import ConfigurationError, brief
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner.base import InnerLearner
from metatoolkit.state import InnerState
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Make
from metatoolkit.testing.expectations import Inapplicable

PROBLEMS = ("small_net", "inside_model", "tied", "matrices", "started")


def build(problem: str, make: Make[InnerLearner]) -> ProblemInstance:
    """Return a problem of the bank with a learner.

    Args:
        problem: Name of the function of the bank.
        make: Makes the learner.

    Raises:
        Inapplicable: The learner does not fit, for instance since its groups name no parameter.
    """
    instance = dataclasses.replace(getattr(bank, problem)(), inner=make())
    try:
        instance.inner.check(instance.problem)
    except ConfigurationError as error:
        raise Inapplicable(f"the learner does not fit the problem: {brief(error)}") from None
    return instance


def take(instance: ProblemInstance, state: InnerState, batches: Sequence[Any]) -> InnerState:
    """Return the state after one step per batch.

    Args:
        instance: Problem and learner.
        state: State to start from.
        batches: The batches.
    """
    meta = instance.problem.meta_parameters()
    for batch in batches:
        state, _ = instance.inner.step(instance.problem, state, meta, batch)
    return state
