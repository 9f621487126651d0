"""Values of any kind as plain data that JSON and BSON can hold."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import math
import numbers
import os
import re
import sys
from collections.abc import Mapping, Set
from typing import Any

from metatoolkit.errors import ConfigurationError

INT64 = 2**63
LARGEST_ARRAY = 1_000_000
DEEPEST = 60

_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+@")
_SECRET_OPTIONS = re.compile(
    r"([?&](?:tlsCertificateKeyFilePassword|authMechanismProperties|password|token)=)[^&\s]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Take user names, passwords and tokens out of every URL in a text.

    Args:
        text: Any text.

    Returns:
        The text with ``scheme://user:password@host`` as ``scheme://host``.
    """
    return _SECRET_OPTIONS.sub(r"\1***", _CREDENTIALS.sub("", text))


def encode_key(key: object) -> str:
    """Write a dictionary key as MongoDB can store and query it.

    Args:
        key: Any key; ``.`` and ``$`` have a meaning of their own in MongoDB.

    Returns:
        The key as text, with full-width forms of the two characters.
    """
    text = key if isinstance(key, str) else str(key)
    return _text(text).replace("\0", "").replace(".", "．").replace("$", "＄")


def decode_key(key: str) -> str:
    """Undo :func:`encode_key`.

    Args:
        key: A stored key.

    Returns:
        The key as the run wrote it.
    """
    return key.replace("．", ".").replace("＄", "$")


def decode(value: Any) -> Any:
    """Undo :func:`encode_key` on every key of nested data.

    Args:
        value: Stored data.

    Returns:
        The same data with the keys as the run wrote them.
    """
    if isinstance(value, Mapping):
        return {decode_key(str(key)): decode(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    return value


def clean_metric(name: str, value: Any) -> Any:
    """Turn a metric value into a number or a nested list of numbers.

    Args:
        name: The metric's name, for the message.
        value: A number, a NumPy or torch scalar or array; NaN and infinity stay as they are.

    Returns:
        An ``int``, ``float`` or ``bool``, or nested lists of them.

    Raises:
        ConfigurationError: The value is not numeric.
    """
    kind = type(value)
    if kind is float or kind is bool:
        return value
    if kind is int:
        return _integer(value)
    if _is_array(value):
        value = _array_as_data(value)
    elif isinstance(value, numbers.Number) and not isinstance(value, complex):
        value = _plain_number(value)
    if _is_numeric(value):
        return value
    raise ConfigurationError(
        f"the metric {name!r} takes a number, a tensor or an array, not {kind.__name__} "
        f"({str(value)[:60]!r}). Log each entry under a name of its own, or put it into _run.info."
    )


def clean(value: Any) -> Any:
    """Turn any value into plain data: numbers, text, lists, dictionaries with text keys, dates.

    Args:
        value: Anything that a configuration, an info dictionary or a result may hold.

    Returns:
        Plain data; what has no plain form becomes its ``repr``.
    """
    return _clean(value, [])


def _clean(value: Any, path: list[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _text(value.name)
    if isinstance(value, str):
        return _text(redact(str(value)))
    if isinstance(value, numbers.Number):
        return repr(value) if isinstance(value, complex) else _plain_number(value)
    if isinstance(value, datetime.datetime):
        return _utc(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, os.PathLike):
        return _text(os.fsdecode(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if id(value) in path or len(path) > DEEPEST:
        return "<recursion>"
    if _is_array(value):
        return _array_as_data(value)
    path.append(id(value))
    try:
        return _clean_container(value, path)
    finally:
        path.pop()


def _clean_container(value: Any, path: list[int]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _clean(getattr(value, name), path) for name in names}
    if isinstance(value, Mapping):
        return {encode_key(key): _clean(entry, path) for key, entry in list(value.items())}
    if isinstance(value, list | tuple):
        return [_clean(entry, path) for entry in list(value)]
    if isinstance(value, Set):
        entries = [_clean(entry, path) for entry in list(value)]
        return sorted(entries, key=lambda entry: (str(type(entry)), str(entry)))
    return _text(redact(repr(value)))


def _text(text: str) -> str:
    # BSON takes UTF-8 only, and a lone surrogate (from an odd file name) has no UTF-8 form.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return str(text)


def _integer(value: int) -> int | float:
    if -INT64 <= value < INT64:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _plain_number(value: Any) -> Any:
    if isinstance(value, numbers.Integral):
        return _integer(int(value))
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return repr(value)


def _is_array(value: Any) -> bool:
    torch = sys.modules.get("torch")
    numpy = sys.modules.get("numpy")
    return bool(
        (torch is not None and isinstance(value, torch.Tensor))
        or (numpy is not None and isinstance(value, numpy.ndarray | numpy.generic))
    )


def _array_as_data(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach()
        size = value.numel()
    else:
        size = value.size
    if size > LARGEST_ARRAY:
        return f"array of {tuple(value.shape)} {value.dtype}"
    try:
        data = value.tolist()
    except (RuntimeError, TypeError, NotImplementedError):
        return repr(value)
    return _entries(data)


def _entries(data: Any) -> Any:
    if isinstance(data, list):
        return [_entries(entry) for entry in data]
    if isinstance(data, bool | float):
        return data
    return _integer(data) if isinstance(data, int) else _clean(data, [])


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(entry) for entry in value)
    return isinstance(value, bool | int | float)


def _utc(value: datetime.datetime) -> datetime.datetime:
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    # MongoDB keeps milliseconds; what is compared later must have been cut the same way.
    return value.replace(microsecond=value.microsecond // 1000 * 1000)
