"""What must hold for every inner learner."""

from __future__ import annotations

from collections.abc import Sequence

from metatoolkit.inner.base import InnerLearner
from metatoolkit.testing.conformance import Check, ConformanceReport, Make
from metatoolkit.testing.inner_learners import derivatives, lifetime, steps

_SUITE = steps.SUITE + derivatives.SUITE + lifetime.SUITE


def inner_learner_checks() -> list[Check[InnerLearner]]:
    """Return the checks of :func:`check_inner_learner`, to parametrize tests over.

    Each is called with a function that makes the learner, and returns why it does not apply, or an
    empty text.
    """
    return list(_SUITE.checks)


def check_inner_learner(
    learner: InnerLearner | Make[InnerLearner], checks: Sequence[str] | None = None
) -> ConformanceReport:
    """Check that an inner learner does what every one must, published or not.

    A step is a pure function: model, state and the global random state stay, and the same state
    gives the same step; it moves the parameters that the loss reaches, skips others with all their
    optimizer state, and differentiates to what finite differences are, in θ, in λ and in its
    hyper-parameters, also where a gradient is zero; parameters may have any shape, and float32 and
    bfloat16; groups have values of their own; what the learner says of its step holds; copies and
    checkpoints go on bitwise.

    Args:
        learner: The learner, of which each check gets a copy, or what makes one. Its
            hyper-parameters are numbers.
        checks: Patterns of the names of checks to run; by default all.

    Returns:
        Which checks hold, and why others do not apply.

    Raises:
        ConformanceError: A check does not hold, or none applies; it names the check.
        ConfigurationError: What is given is no inner learner.
        UnknownNameError: A pattern matches no check.
    """
    return _SUITE.run(learner, checks)
