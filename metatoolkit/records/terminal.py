"""What is said on a terminal: harmless lines, on streams that may be closed, full or ASCII."""

from __future__ import annotations

import contextlib
import datetime
import errno
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from metatoolkit.errors import MetatoolkitError

# What writing to a standard stream fails with, where the disk behind it is full, say.
FAILING = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG)


def harmless(text: str, keep: str = "\n\t") -> str:
    """Put a blank for every control character, which a terminal would obey, but those to keep."""
    return "".join(one if one.isprintable() or one in keep else " " for one in text)


def text(value: Any) -> str:
    """Write plain data in one line of a few characters, harmless on a terminal."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if value is None else "nan"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, datetime.datetime):
        local = value.replace(tzinfo=datetime.UTC).astimezone()
        return local.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list):
        value = ", ".join(text(entry) for entry in value)
    # Text out of a database may hold escape sequences, which a terminal would obey.
    return harmless(str(value), keep="")


def say(message: str) -> None:
    """Print one line for the user on stderr: what happened and what follows from it."""
    print(f"metatoolkit: {harmless(message)}", file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Let printing fail neither where a stream is closed nor where it cannot write a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open for as long as the process; the file takes the place of the closed one.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def answer(command: Callable[[], int], interrupted: str = "") -> int:
    """Carry out a command, and answer in one line what ends it.

    Args:
        command: The command; returns its exit code.
        interrupted: What to say after Ctrl-C.

    Returns:
        That code, 2 for an error of this toolkit, 130 after Ctrl-C, and 0 where the reader of the
        output, such as `head`, has seen enough.
    """
    prepare_streams()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except MetatoolkitError as error:
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:
        _give_up_output()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in FAILING:
            raise
        _give_up_output()
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 2


def flush_output() -> None:
    """Write what is still to be printed, unless its reader has seen enough."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_output()


def _give_up_output() -> None:
    """Keep Python from flushing once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
