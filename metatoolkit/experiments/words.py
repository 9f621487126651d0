"""Words of a command line that stand for configuration entries, as Sacred reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metatoolkit.errors import ConfigurationError

_OPENING, _CLOSING = "([{", ")]}"


def read_entries(words: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read words such as ``steps=100``, ``noise.kind=flip`` and ``smoke``.

    Args:
        words: The words.

    Returns:
        Configuration entries, nested, and the named configurations.
    """
    from metatoolkit.records.sacred_compat import import_sacred

    import_sacred()
    from sacred.arg_parser import get_config_updates

    updates, named = get_config_updates(list(words))
    return dict(updates), tuple(named)


def read_values(word: str) -> tuple[str, list[Any]]:
    """Read several values of one entry: ``method=a,b``, ``seed=0..4``, ``hidden=[8],[8,8]``.

    Args:
        word: The entry's name, ``=``, and values with commas between them. ``0..4`` stands for the
            integers from 0 to 4.

    Returns:
        The entry's name, dotted, and its values.

    Raises:
        ConfigurationError: There is no name or no value, a value is empty or given twice, or a
            range is reversed.
    """
    name, _, given = word.partition("=")
    if not name or not given:
        raise ConfigurationError(
            f"{word!r} gives an entry no values; write entry=value,value or entry=0..4."
        )
    values: list[Any] = []
    for one in _pieces(given):
        if not one:
            raise ConfigurationError(f"{word!r} has an empty value; leave out a comma.")
        low, dots, high = one.partition("..")
        if dots and _is_integer(low) and _is_integer(high):
            if int(low) > int(high):
                raise ConfigurationError(
                    f"{one} in {word!r} is reversed, and holds nothing; write {high}..{low}."
                )
            values += range(int(low), int(high) + 1)
        else:
            values.append(read_entries([f"value={one}"])[0]["value"])
    told = list(map(repr, values))
    for one in told:
        if told.count(one) > 1:
            raise ConfigurationError(f"{word!r} gives {one} twice; give it once.")
    return name, values


def nested(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Join configuration entries, of which later ones count, as a nested dictionary.

    Args:
        *parts: Entries by their names, dotted or nested.

    Example:
        >>> nested({"lr": 0.1, "noise": {"kind": "flip"}}, {"noise.probability": 0.4})
        {'lr': 0.1, 'noise': {'kind': 'flip', 'probability': 0.4}}
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            first, dotted, rest = name.partition(".")
            if dotted or isinstance(value, Mapping):
                former = joined.get(first)
                value = nested(
                    former if isinstance(former, Mapping) else {},
                    {rest: value} if dotted else value,
                )
            joined[first] = value
    return joined


def _pieces(text: str) -> list[str]:
    """Cut at the commas that stand outside of brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
            if letter == "," and not depth:
                pieces.append("")
                continue
        pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
