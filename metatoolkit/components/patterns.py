"""Names chosen by patterns, where a pattern that matches nothing is an error."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from metatoolkit.errors import ConfigurationError

_SHOWN = 10


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the patterns, upper and lower case told apart.

    Args:
        name: Name of a parameter or a module.
        patterns: Patterns as in :mod:`fnmatch`.
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_listed(argument: str, patterns: object) -> None:
    """Raise where one string stands for a list of patterns, whose letters would be taken for them.

    Args:
        argument: Argument that holds the patterns.
        patterns: What was given.

    Raises:
        ConfigurationError: It is a string.
    """
    if isinstance(patterns, str):
        raise ConfigurationError(f"{argument} is {patterns!r}; give a list: [{patterns!r}].")


def matching(argument: str, patterns: Iterable[str], names: Iterable[str], kind: str) -> list[str]:
    """Return the names that match one of the patterns, in the order of the names.

    Args:
        argument: Argument that holds the patterns, at the beginning of the message.
        patterns: Patterns as in :mod:`fnmatch`, each of which must match a name.
        names: Names to choose from.
        kind: What is named, as it appears in the message, for instance ``"inner parameter"``.

    Raises:
        ConfigurationError: ``patterns`` is one string, or a pattern matches none.
    """
    check_listed(argument, patterns)
    patterns, names = list(patterns), list(names)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise ConfigurationError(
                f"{argument}: {pattern!r} matches no {kind}; there are {_near(pattern, names)}."
            )
    return [name for name in names if matches(name, patterns)]


def _near(pattern: str, names: list[str]) -> str:
    """Return the names in words, of many the nearest to a pattern."""
    if len(names) <= _SHOWN:
        return ", ".join(names) or "none"
    near = difflib.get_close_matches(pattern, names, n=_SHOWN, cutoff=0.0)
    return f"{len(names)}, the nearest {', '.join(near)}"
