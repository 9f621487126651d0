"""learn2learn, imported where it is used: it takes seconds and prints a banner of gym's."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from metatoolkit.errors import MissingDependencyError


def import_learn2learn() -> Any:
    """Return the package ``learn2learn``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        # gym, which learn2learn imports, writes that it is unmaintained.
        with contextlib.redirect_stderr(io.StringIO()):
            import learn2learn
    except ImportError as error:
        raise MissingDependencyError(
            "learn2learn is not installed; run `pip install --no-deps -r "
            "requirements-learn2learn.txt` in the repository."
        ) from error
    return learn2learn
