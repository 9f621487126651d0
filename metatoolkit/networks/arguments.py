"""Checks of the arguments that networks share."""

from __future__ import annotations

from metatoolkit.errors import ConfigurationError


def check_positive(**values: int) -> None:
    """Check that sizes and counts are at least 1.

    Args:
        values: Arguments by name.

    Raises:
        ConfigurationError: One is less than 1; the message names it.
    """
    for name, value in values.items():
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; at least 1 is needed.")
