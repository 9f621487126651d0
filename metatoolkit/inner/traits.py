"""What an inner learner says of its step, and whether it holds of classes that override parts."""

from __future__ import annotations

from typing import Any

_PARTS = ("update", "apply", "step", "gradients")


def is_own(inner: Any, base: type, name: str) -> bool:
    """Return whether a learner or its class overrides a method of the base class.

    Args:
        inner: The learner.
        base: The class that all learners derive from.
        name: Name of the method. Where ``"step"`` is its own, a step is another map than an update
            by a gradient of the training loss.
    """
    return name in vars(inner) or getattr(type(inner), name) is not getattr(base, name)


def is_said_of(inner: Any, statement: str) -> bool:
    """Return whether a statement of a class holds: no newer class overrides what it tells of.

    Args:
        inner: The learner.
        statement: Name of a method or an attribute that tells something of the step.

    Returns:
        Whether no newer class, nor the learner itself, overrides a part of the step.
    """
    order = [vars(inner), *map(vars, type(inner).__mro__)]

    def newest(name: str) -> int:
        return next(place for place, names in enumerate(order) if name in names)

    return newest(statement) <= min(map(newest, _PARTS))


def tells_sensitivity(inner: Any, base: type) -> bool:
    """Return whether a learner has a closed form of ∂θ⁺/∂g that is that of its update.

    Args:
        inner: The learner.
        base: The class that all learners derive from, which has no closed form.
    """
    return is_own(inner, base, "sensitivity") and is_said_of(inner, "sensitivity")


def is_coordinatewise(inner: Any, base: type) -> bool:
    """Return whether each update of a step moves a coordinate by that coordinate's gradient alone.

    Args:
        inner: The learner.
        base: The class that all learners derive from.
    """
    said = inner.coordinatewise and is_said_of(inner, "coordinatewise")
    return said or tells_sensitivity(inner, base)


def is_linear_in_gradient(inner: Any) -> bool:
    """Return whether a step is θ − D g plus what no gradient of the step moves.

    Args:
        inner: The learner.
    """
    return inner.linear_in_gradient and is_said_of(inner, "linear_in_gradient")
