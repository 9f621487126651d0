"""Arguments that estimators and what uses them have in common."""

from __future__ import annotations

from collections.abc import Sequence

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Estimator

_LONGEST_SHOWN = 40
"""Characters of a value beyond which an error names its class alone."""


def require_estimator(name: str, value: object) -> None:
    """Raise unless a value is an estimator.

    Args:
        name: Name of the argument.
        value: What was given for it.

    Raises:
        ConfigurationError: It is a class, or something else.
    """
    if isinstance(value, Estimator):
        return
    if isinstance(value, type) and issubclass(value, Estimator):
        raise ConfigurationError(
            f"{name} is the class {value.__name__}; pass an instance: {value.__name__}(...)."
        )
    shown = repr(value)
    if len(shown) > _LONGEST_SHOWN or "\n" in shown:
        shown = f"a {type(value).__name__}"
    raise ConfigurationError(
        f"{name} is {shown}; accepted: an estimator, for instance Unrolled(steps=1)."
    )


def require_steps(steps: int) -> None:
    """Raise unless a number of inner steps is at least 1.

    Args:
        steps: The number.

    Raises:
        ConfigurationError: It is below 1.
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; at least 1 inner step is needed.")


def require_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raise unless a name is one of those that an argument accepts.

    Args:
        name: Name of the argument.
        value: What was given for it.
        accepted: The names.

    Raises:
        ConfigurationError: It is none of them.
    """
    if value not in accepted:
        raise ConfigurationError(f"{name} is {value!r}; accepted: {', '.join(accepted)}.")


def check_through(through: str) -> None:
    """Raise unless ``through`` is known.

    Args:
        through: The argument.

    Raises:
        ConfigurationError: It is neither ``"state"`` nor ``"parameters"``.
    """
    if through not in ("state", "parameters"):
        raise ConfigurationError(f"through is {through!r}; accepted: 'state', 'parameters'.")
