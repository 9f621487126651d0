"""What tells runs apart: the shortest set of configuration entries that does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import UnknownNameError
from metatoolkit.records.fields import flatten, identity
from metatoolkit.records.run import Run
from metatoolkit.records.terminal import text

if TYPE_CHECKING:
    pass

BOOKKEEPING = frozenset({"checkpoint", "checkpoint_every", "resume", "progress", "device"})
"""Entries that say how a run is carried out and change no number."""

_BOOKKEEPING = tuple(f"config.{one}" for one in sorted(BOOKKEEPING))

# Sets of two are tried among so many entries; beyond, the best entry is added at a time.
PAIRS = 100
LONGEST_VALUE = 24


def settings(run: Run, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """List the configuration entries of a run that tell it from others.

    Args:
        run: The run.
        ignore: Further entries that do not count, with or without ``config.``; a name stands for
            everything below it.

    Returns:
        Values by name, such as ``config.network.width``; bookkeeping is left out.
    """
    return without({f"config.{name}": v for name, v in flatten(run.config).items()}, ignore)


def without(config: Mapping[str, Any], ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Leave out entries that do not count, bookkeeping among them.

    Args:
        config: Values by name, such as ``config.network.width``.
        ignore: Further entries, with or without ``config.``, each with everything below it.

    Returns:
        The others.
    """
    left_out = tuple(f"config.{one.removeprefix('config.')}" for one in ignore)
    return {name: value for name, value in config.items() if not _is_left_out(name, left_out)}


@functools.lru_cache(10_000)
def _is_left_out(name: str, ignore: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in (*_BOOKKEEPING, *ignore))


def check_entries(names: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse a name of a configuration entry that no run has.

    Args:
        names: Names, with or without ``config.``; that of a part stands for its entries.
        runs: The runs.

    Raises:
        UnknownNameError: No run has the entry.
    """
    known = {name for run in runs for name in flatten(run.config)}
    for name in names:
        bare = name.removeprefix("config.")
        if not any(one == bare or one.startswith(f"{bare}.") for one in known):
            raise UnknownNameError("configuration entry", name, known)


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names under which configurations hold different values.

    Args:
        configs: Values by name; one that is missing counts as None.

    Returns:
        The names, in the order in which they come.
    """
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({identity(config.get(name)) for config in configs}) > 1]


def ranked(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names of :func:`differing`, those that say most to a reader first.

    Args:
        configs: Values by name.

    Returns:
        Names of choices, which are words, before those of numbers; short ones before long ones.
    """

    def rank(name: str) -> tuple[bool, int, int]:
        values = [config.get(name) for config in configs]
        choice = all(value is None or isinstance(value, str | bool) for value in values)
        short = all(len(str(value)) <= LONGEST_VALUE for value in values)
        return not (choice and short), name.count("."), len(name)

    return sorted(differing(configs), key=rank)


def distinguishing(
    configs: Sequence[Mapping[str, Any]], classes: Sequence[Hashable] | None = None
) -> list[str]:
    """Find the shortest set of entries that tells configurations apart.

    Args:
        configs: Values by name.
        classes: What tells some of them apart already, one for each.

    Returns:
        The names; of two sets of equal length the one that comes first in :func:`ranked`.
    """
    keys: list[tuple[Hashable, ...]] = [(one,) for one in (classes or [None] * len(configs))]
    names = ranked(configs)
    values = {name: [identity(config.get(name)) for config in configs] for name in names}

    def count(chosen: Sequence[str]) -> int:
        return len(set(zip(keys, *(values[name] for name in chosen), strict=True)))

    wanted = count(names)
    sizes = range(3 if len(names) <= PAIRS else 2)
    for size in sizes:
        for chosen in itertools.combinations(names, size):
            if count(chosen) == wanted:
                return list(chosen)
    found: list[str] = []
    while count(found) < wanted:
        found.append(max(names, key=lambda name: count([*found, name])))
    return found


def labels(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Write configurations in a few words.

    Args:
        configs: Values by name.
        names: The names that tell them apart.

    Returns:
        For each configuration the first of these entries, as many as it takes to be the only one
        of its kind; blank where there are no names.
    """
    keys = [tuple(identity(config.get(name)) for name in names) for config in configs]
    told = []
    for key, config in zip(keys, configs, strict=True):
        others = {one for one in keys if one != key}
        shown = next(
            (
                count
                for count in range(1, len(names) + 1)
                if not any(one[:count] == key[:count] for one in others)
            ),
            len(names),
        )
        told.append(", ".join(_entry(name, config.get(name)) for name in names[:shown]))
    return told


def _entry(name: str, value: Any) -> str:
    shown = "none" if value is None else text(value)
    if len(shown) > LONGEST_VALUE:
        shown = f"{shown[: LONGEST_VALUE // 2]}…{shown[-LONGEST_VALUE // 2 + 1 :]}"
    return f"{text(name.removeprefix('config.'))}={shown}"


def finite(value: Any) -> bool:
    """Say whether a value is a number that can be averaged.

    Args:
        value: Any value.

    Returns:
        False for NaN, infinity, booleans and everything else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
