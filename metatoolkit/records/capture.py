"""What a run prints, written to the spool at once and passed on to the terminal."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from metatoolkit.records.spool import AppendedFile


class _Stream:
    """A stream that also writes to the spool; everything else is the original's."""

    def __init__(self, original: Any, tee: OutputTee) -> None:
        self._original = original
        self._tee = tee

    def write(self, text: str) -> int:
        written = self._original.write(text)
        self._tee.keep(text)
        return len(text) if written is None else written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class OutputTee:
    """Captures ``sys.stdout``, ``sys.stderr`` and Sacred's log lines.

    Sacred's own capture keeps output in memory, from where a killed run loses it, and its
    ``sys`` mode may lose what is printed while a heartbeat reads.

    Args:
        output: The spool's file.
        logger: Sacred's logger, whose handlers hold the original stream.
    """

    closed = False

    def __init__(self, output: AppendedFile, logger: logging.Logger | None = None) -> None:
        self._output = output
        self._logger = logger
        self._lock = threading.Lock()
        self._offset = 0
        self._active = False
        self._originals: tuple[Any, Any] | None = None
        self._streams: tuple[_Stream, _Stream] | None = None
        self._handlers: list[tuple[Any, Any]] = []

    def install(self) -> None:
        """Begin to capture."""
        self._originals = (sys.stdout, sys.stderr)
        self._streams = (_Stream(sys.stdout, self), _Stream(sys.stderr, self))
        self._active = True
        sys.stdout, sys.stderr = self._streams
        for handler in getattr(self._logger, "handlers", []):
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in self._originals:
                replacement = self._streams[self._originals.index(stream)]
                self._handlers.append((handler, stream))
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

    def keep(self, text: str) -> None:
        """Add a piece of output.

        Args:
            text: What was printed.
        """
        if self._active and text:
            with self._lock:
                self._output.append(text.encode("utf-8", "backslashreplace"))

    def get(self) -> str:
        """Return what is new, as Sacred asks its own captures for it.

        Returns:
            The output since the last call.
        """
        with self._lock:
            data = self._output.read(self._offset)
        self._offset += len(data)
        return data.decode("utf-8", "replace")
