"""Signals wait for the end of an outer step, so that a training stops in a state to go on from."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class DeferredSignals:
    """Holds back signals that Python handles, Ctrl-C among them, while a step is taken.

    A second signal goes through at once. What has no handler of Python's does what it did. Outside
    the main thread, where handlers cannot be set, nothing is held back.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._held: int | None = None
        self._inside = False
        self._pid = os.getpid()

    def __enter__(self) -> DeferredSignals:
        """Begin to watch."""
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and callable(former := signal.getsignal(number)):
                    self._former[number] = former
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, former in self._former.items():
            signal.signal(number, former)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Let a signal wait until the body is done; it is dropped where the body fails anyway.

        Yields:
            Nothing.
        """
        self._inside = True
        try:
            yield
            held, self._held = self._held, None
        finally:
            self._inside, self._held = False, None
        if held is not None:
            self._former[held](held, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._inside and self._held is None and os.getpid() == self._pid:
            self._held = number
        else:
            self._former[number](number, frame)
