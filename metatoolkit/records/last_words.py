"""What a run says last where its disk is full: in room that was kept for it from the beginning."""

from __future__ import annotations

import datetime
import errno
import json
import os
from pathlib import Path
from typing import Any

from metatoolkit.records.home import private, storage_error

FILE = "last"
ROOM = 64 * 1024


def keep_room(folder: Path) -> None:
    """Keep the room.

    Args:
        folder: The run's folder.
    """
    with open(folder / FILE, "wb", opener=private) as file:
        file.write(bytes(ROOM))


def write(folder: Path, words: dict[str, Any]) -> None:
    """Write what the run's document should say.

    Args:
        folder: The run's folder.
        words: Fields of the document; none, where it says all that there is.

    Raises:
        StorageError: Even that is not possible.
    """
    path = folder / FILE
    data = json.dumps(words, default=encode_date).encode() + b"\n" if words else b"\0"
    try:
        if len(data) > ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Over what is there already: a full disk has no other room.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            written = os.pwrite(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if written < len(data):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    except OSError as error:
        raise storage_error(path, error) from error


def read(folder: Path) -> dict[str, Any]:
    """Read what a run has said last.

    Args:
        folder: The run's folder.

    Returns:
        Fields that replace those of its document; none, as a rule.
    """
    try:
        line = (folder / FILE).read_bytes().partition(b"\n")[0]
    except OSError:
        return {}
    if line[:1] != b"{":
        return {}
    try:
        words = json.loads(line, object_hook=decode_date)
    except ValueError:
        # Cut off while it was written over; the document is still there.
        return {}
    return words if isinstance(words, dict) else {}


def encode_date(value: object) -> dict[str, str]:
    """Write a date as JSON can hold it; what ``json.dump`` calls for what it does not know.

    Args:
        value: The date.

    Returns:
        A dictionary that no plain data can be mistaken for.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, datetime.datetime):
        return {"$date": value.isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode_date(value: dict[str, Any]) -> Any:
    """Undo :func:`encode_date`; what ``json.loads`` calls for every dictionary.

    Args:
        value: A dictionary.

    Returns:
        The date that it stands for, or the dictionary itself.
    """
    if len(value) == 1 and isinstance(value.get("$date"), str):
        return datetime.datetime.fromisoformat(value["$date"])
    return value
