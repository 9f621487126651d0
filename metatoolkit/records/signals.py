"""SIGTERM and SIGHUP end a run the way Ctrl-C does: with its record complete."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """A signal asked the run to end.

    It derives from KeyboardInterrupt so that ``except Exception`` in a training loop does not
    swallow it.

    Args:
        number: The signal's number.
    """

    STATUS = "INTERRUPTED"

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class TerminationSignals:
    """Turns termination signals into :class:`Terminated` for as long as a run lasts."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.ending = False
        self._former: dict[int, Any] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Begin; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup's SIG_IGN, or a handler of the application's own, stays in force.
            if signal.getsignal(number) is signal.SIG_DFL:
                self._former[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """End; the signals do again what they did before."""
        if threading.current_thread() is threading.main_thread():
            for number, former in self._former.items():
                signal.signal(number, former)
            self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked worker has inherited the handler, and the run is not its own.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.ending:
            # The run is over, and its last words are being written.
            return
        self.received = signal.Signals(number).name
        raise Terminated(number)
