"""What a run takes over of its process: what it prints, and the signals that end it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from metatoolkit.records.appended_file import AppendedFile


class _Nowhere(io.TextIOBase):
    """In the place of a stream that was closed before the program began."""

    def write(self, text: str | bytes) -> int:
        return len(text)

    @property
    def buffer(self) -> _Nowhere:
        return self


class _Stream:
    """A stream that also writes to the spool; everything else is the original's."""

    def __init__(self, original: Any, tee: OutputTee) -> None:
        self._original = original
        self._tee = tee

    def write(self, text: str | bytes) -> int:
        written = None
        # A reader such as `head` may have seen enough; the run goes on all the same.
        with contextlib.suppress(BrokenPipeError):
            written = self._original.write(text)
        self._tee.keep(text)
        return len(text) if written is None else int(written)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._original.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        return _Stream(self._original.buffer, self._tee)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class KeptInMemory:
    """Output that waits for the experiment's own filter before it is written."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        """Add output."""
        self._data += data

    def read(self, offset: int) -> bytes:
        """Return the output from a place on."""
        return bytes(self._data[offset:])


class OutputTee:
    """Captures ``sys.stdout``, ``sys.stderr`` and what is logged to them.

    Sacred's own capture keeps output in memory, from where a killed run loses it, and its
    ``sys`` mode may lose what is printed while a heartbeat reads.

    Args:
        output: The spool's file, or what stands between.
        logger: Sacred's logger, which need not be a registered one.
    """

    closed = False

    def __init__(
        self, output: AppendedFile | KeptInMemory, logger: logging.Logger | None = None
    ) -> None:
        self._output = output
        self._logger = logger
        self._offset = 0
        self._active = False
        self._originals: tuple[Any, Any] | None = None
        self._streams: tuple[_Stream, _Stream] | None = None
        self._handlers: list[tuple[Any, Any]] = []

    def install(self) -> None:
        """Begin to capture."""
        self._originals = (sys.stdout, sys.stderr)
        # Python has None in the place of a closed stream, and lets a program print to it.
        out, err = (_Nowhere() if one is None else one for one in self._originals)
        self._streams = (_Stream(out, self), _Stream(err, self))
        self._active = True
        sys.stdout, sys.stderr = self._streams
        for handler in self._stream_handlers():
            for original, replacement in zip(self._originals, self._streams, strict=True):
                if handler.stream is original:
                    self._handlers.append((handler, original))
                    handler.setStream(replacement)

    def remove(self) -> None:
        """Stop capturing; streams that somebody else has replaced meanwhile are left alone."""
        self._active = False
        if self._streams is None or self._originals is None:
            return
        if sys.stdout is self._streams[0]:
            sys.stdout = self._originals[0]
        if sys.stderr is self._streams[1]:
            sys.stderr = self._originals[1]
        for handler, stream in self._handlers:
            handler.setStream(stream)

    def keep(self, text: str | bytes) -> None:
        """Add a piece of output.

        Args:
            text: What was printed.
        """
        if self._active and text:
            data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
            self._output.append(bytes(data))

    def get(self) -> str:
        """Return what is new, as Sacred asks its own captures for it.

        Returns:
            The output since the last call.
        """
        data = self._output.read(self._offset)
        self._offset += len(data)
        return data.decode("utf-8", "replace")

    def _stream_handlers(self) -> list[logging.StreamHandler[Any]]:
        loggers: list[Any] = [self._logger, logging.root, *logging.root.manager.loggerDict.values()]
        handlers = [one for logger in loggers for one in getattr(logger, "handlers", [])]
        unique = {id(one): one for one in handlers if isinstance(one, logging.StreamHandler)}
        return list(unique.values())


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
