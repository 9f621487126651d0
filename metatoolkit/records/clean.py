"""Values of any kind as plain data that JSON and BSON can hold."""

from __future__ import annotations

import ast
import base64
import dataclasses
import datetime
import enum
import math
import numbers
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.terminal import HIDDEN, is_secret, is_secret_option, redact

INT64 = 2**63
LARGEST_ARRAY = 100_000
DEEPEST = 60


def encode_key(key: object) -> str:
    """Write a dictionary key as MongoDB can store and query it.

    ``.`` and ``$``, which have a meaning of their own there, become their full-width forms.
    """
    return clean_text(str(key)).replace("\0", "").replace(".", "．").replace("$", "＄")


def encoded_keys(keys: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Write the keys of one dictionary as MongoDB can store them; yield each beside the key."""
    names: set[str] = set()
    for key in keys:
        name = encode_key(key)
        # 1 and "1" are two keys in Python and one in a document.
        while name in names:
            name += "'"
        names.add(name)
        yield name, key


def decode_key(key: str) -> str:
    """Undo :func:`encode_key`."""
    return key.replace("．", ".").replace("＄", "$")


def decode(value: Any) -> Any:
    """Undo :func:`encode_key` on every key of nested data."""
    if isinstance(value, Mapping):
        return {decode_key(str(key)): decode(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    return value


def clean_metric(name: str, value: Any) -> Any:
    """Turn a metric value into a number or a nested list of numbers; NaN and infinity stay.

    Args:
        name: The metric's name, for the message.
        value: A number, a NumPy or torch scalar or array.

    Returns:
        An ``int``, ``float`` or ``bool``, or nested lists of them.

    Raises:
        ConfigurationError: The value is not numeric, or has more than 100,000 entries.
    """
    torch = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor and value.dim() == 0:
        value = value.item()
    kind = type(value)
    if kind is float or kind is bool:
        return value
    if kind is int:
        return _integer(value)
    if _is_array(value):
        _check_count(name, math.prod(value.shape))
        value = _array_as_data(value)
    elif isinstance(value, numbers.Number) and not isinstance(value, complex):
        value = _plain_number(value)
    if isinstance(value, list):
        _check_count(name, count_entries(value))
    if _is_numeric(value):
        return value
    raise ConfigurationError(
        f"the metric {name!r} takes a number, a tensor or an array, not {kind.__name__} "
        f"({str(value)[:60]!r}). Log each entry under a name of its own, or put it into _run.info."
    )


def clean(value: Any) -> Any:
    """Turn any value into plain data: numbers, text, lists, dictionaries with text keys, dates.

    What has no plain form becomes its ``repr``.
    """
    return _clean(value, [])


def clean_update(word: Any) -> Any:
    """Clean a word of a command line, as in ``api.password=...`` or ``api={'password': ...}``."""
    if not isinstance(word, str) or "=" not in word:
        return clean(word)
    name, _, given = word.partition("=")
    key = name.replace("．", ".").rpartition(".")[2]
    try:
        value = ast.literal_eval(given.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = given.strip()
    if is_secret(key, value):
        return f"{clean_text(name)}={HIDDEN}"
    cleaned = clean(value)
    hidden = isinstance(cleaned, dict | list) and HIDDEN in repr(cleaned)
    return f"{clean_text(name)}={cleaned!r}" if hidden else clean(word)


def _clean(value: Any, path: list[int]) -> Any:
    try:
        return _plain(value, path)
    except Exception as error:
        # Foreign code runs here (an object's own repr, say), and no run may die of its record.
        return f"<{type(value).__name__}: {type(error).__name__} when it was recorded>"


def _plain(value: Any, path: list[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return clean_text(value.name)
    if isinstance(value, str):
        return clean_text(redact(str(value)))
    if isinstance(value, numbers.Number):
        return repr(value) if isinstance(value, complex) else _plain_number(value)
    if isinstance(value, datetime.datetime):
        return utc(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, os.PathLike):
        return clean_text(os.fsdecode(value))
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
        named = dict(_entries_of(value.items()))
        pairs = [(name, named[key]) for name, key in encoded_keys(named)]
        return {n: HIDDEN if is_secret(n, one) else _clean(one, path) for n, one in pairs}
    if isinstance(value, list | tuple):
        entries = list(value)
        # Such as the words of a command: `["--password", "..."]`.
        before = [None, *entries]
        return [
            HIDDEN if isinstance(entry, str) and is_secret_option(last) else _clean(entry, path)
            for last, entry in zip(before, entries, strict=False)
        ]
    if isinstance(value, Set):
        entries = [_clean(entry, path) for entry in _entries_of(value)]
        return sorted(entries, key=lambda entry: (str(type(entry)), str(entry)))
    return clean_text(redact(repr(value)))


def _entries_of(value: Any) -> list[Any]:
    for _ in range(20):
        try:
            return list(value)
        except RuntimeError:
            # The run has changed it while the thread of the records was reading it.
            time.sleep(0.001)
    return list(value)


def clean_text(text: str) -> str:
    """Make a text one that BSON takes: UTF-8, lone surrogates, as in odd file names, as escapes."""
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
    value = value.detach() if hasattr(value, "detach") else value
    if math.prod(value.shape) > LARGEST_ARRAY:
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


def count_entries(value: Any) -> int:
    """Say how many numbers a metric value holds; every nested list counts as one more."""
    if not isinstance(value, list):
        return 1
    return sum(1 + count_entries(entry) if isinstance(entry, list) else 1 for entry in value)


def _check_count(name: str, count: int) -> None:
    if count > LARGEST_ARRAY:
        raise ConfigurationError(
            f"the metric {name!r} takes up to {LARGEST_ARRAY:,} numbers at once, not {count:,}. "
            "Save larger arrays to a file and add it with _run.add_artifact."
        )


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(entry) for entry in value)
    return isinstance(value, bool | int | float)


def utc(value: datetime.datetime) -> datetime.datetime:
    """Write a moment as the database keeps it: in UTC, without a time zone, cut to milliseconds."""
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def encode_date(value: object) -> dict[str, str]:
    """Write a date as JSON can hold it, as a dictionary that no plain data can be mistaken for.

    ``json.dump`` calls this for what it does not know; anything else is a ``TypeError``.
    """
    if isinstance(value, datetime.datetime):
        return {"$date": value.isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode_date(value: dict[str, Any]) -> Any:
    """Undo :func:`encode_date`; what ``json.loads`` calls for every dictionary."""
    if len(value) == 1 and isinstance(value.get("$date"), str):
        return datetime.datetime.fromisoformat(value["$date"])
    return value
