"""learn2learn, imported where it is used: it takes seconds and prints a banner of gym's."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from metatoolkit.errors import optional_import


def import_learn2learn(purpose: str) -> Any:
    """Return the package ``learn2learn``.

    Args:
        purpose: What needs it, at the beginning of the message where it is missing.

    Raises:
        MissingDependencyError: It is not installed.
    """
    # gym, which learn2learn imports, writes that it is unmaintained.
    with optional_import(purpose), contextlib.redirect_stderr(io.StringIO()):
        import learn2learn
    return learn2learn
