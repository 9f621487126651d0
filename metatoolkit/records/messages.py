"""What the records say to the user: one line on stderr at a time."""

from __future__ import annotations

import sys

from metatoolkit.terminal import harmless


def say(message: str) -> None:
    """Print one line for the user on stderr.

    Args:
        message: What happened and what follows from it.
    """
    print(f"metatoolkit: {harmless(message)}", file=sys.stderr, flush=True)
