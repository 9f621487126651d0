"""What must hold for every estimator, on every problem of the bank that it applies to."""

from __future__ import annotations

from collections.abc import Sequence

from metatoolkit.hypergradients.base import Estimator
from metatoolkit.testing.conformance import Check, ConformanceReport, Make
from metatoolkit.testing.estimators import lifetime, precision, randomness, refusals, results

_SUITE = results.SUITE + refusals.SUITE + randomness.SUITE + precision.SUITE + lifetime.SUITE


def estimator_checks() -> list[Check[Estimator]]:
    """Return the checks of :func:`check_estimator`, to parametrize tests over.

    Each is called with a function that makes the estimator, and returns why it does not apply, or
    an empty text.
    """
    return list(_SUITE.checks)


def check_estimator(
    estimator: Estimator | Make[Estimator], checks: Sequence[str] | None = None
) -> ConformanceReport:
    """Check that an estimator does what every one must, published or not.

    A call leaves modules, batches, ``.grad`` fields and the global random states alone; the result
    has the form of λ and does not contradict finite differences of the estimator's objective; the
    outer loss is one of the trajectory, of an exact estimator that after the steps; dropout
    masks are those of the inner steps; running statistics move in real steps; tied, frozen and 0-d
    parameters, groups, a part of λ that a loss ignores, coordinates without a gradient under Adam,
    float32 and bfloat16 work; memory stays; what is not finite is told; checkpoints go on bitwise.

    Args:
        estimator: The estimator, of which each check gets a copy, or what makes one. It refuses a
            problem that is none for it by :class:`~metatoolkit.errors.UnsupportedError`.
        checks: Patterns of the names of checks to run; by default all.

    Returns:
        Which checks hold, and why others do not apply.

    Raises:
        ConformanceError: A check does not hold, or none applies; it names the check.
        ConfigurationError: What is given is no estimator.
        UnknownNameError: A pattern matches no check.
    """
    return _SUITE.run(estimator, checks)
