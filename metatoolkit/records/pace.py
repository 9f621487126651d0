"""How much is sent to a database at once, and how long it may take: as its line allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.database import Database

FIRST = 512 * 1024
SMALLEST, LARGEST = 64 * 1024, 8 * 2**20
SLOWEST = 20_000
SECONDS_AT_ONCE = 1.0


class Pace:
    """The size of the next piece, found from how long the last ones took.

    Args:
        after: Called after each piece.
    """

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.size = FIRST
        self.after = after

    @contextmanager
    def sending(self, database: Database[dict[str, Any]], size: int) -> Iterator[None]:
        """Give one piece the time that it needs on a slow line.

        Args:
            database: Where it goes. The time that its connection string allows is the least.
            size: How many bytes are sent, or read by the server.

        Yields:
            Nothing.
        """
        import pymongo

        options = database.client.options
        allowed = getattr(options, "timeout", None) or options.pool_options.socket_timeout
        begun = time.monotonic()
        try:
            if allowed:
                with pymongo.timeout(max(allowed, size / SLOWEST)):
                    yield
            else:
                yield
        except Exception:
            self.size = max(SMALLEST, self.size // 4)
            raise
        seconds = max(time.monotonic() - begun, 1e-3)
        if size >= SMALLEST:
            self.size = int(min(max(size / seconds * SECONDS_AT_ONCE, SMALLEST), LARGEST))
        self.after()
