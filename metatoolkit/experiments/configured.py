"""What ties a Sacred experiment to the definition of its configuration."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from metatoolkit.experiments.accepted import help_of
from metatoolkit.experiments.configuration import Settings

Config = dict[str, Any]


def configure(
    experiment: Any,
    settings: type[Settings],
    named: Mapping[str, Mapping[str, Any]] | None = None,
    fill: Callable[[Config], Config] | None = None,
) -> Callable[[Mapping[str, Any]], Config]:
    """Give a Sacred experiment its configuration.

    It takes the entries of the definition with their defaults, ``--help`` prints them, and they are
    checked before anything runs. What is recorded and compared holds what was used, such as a tuned
    learning rate, and not the ``None`` that stands for it; a seed that is not given is drawn.

    Args:
        experiment: What :func:`metatoolkit.records.experiment` returned.
        settings: Definition of the configuration.
        named: Named configurations: entries by name.
        fill: Takes a checked configuration and returns it with open entries filled in.

    Returns:
        A function that checks a configuration and fills it in.
    """

    def settled(config: Mapping[str, Any]) -> Config:
        checked = settings.settle(config)
        return checked if fill is None else fill(checked)

    def hook(config: Config, command_name: str, logger: Any) -> Config:
        # Sacred would draw one only after this, when it is too late for what follows from it.
        drawn = {"seed": secrets.randbelow(2**31)} if config.get("seed") is None else {}
        return _changed(config, settled({**config, **drawn}))

    named = named or {}
    experiment.add_config(settings.defaults())
    for name, updates in named.items():
        experiment.add_named_config(name, updates)
    experiment.config_hook(hook)
    experiment.open_entries = settings.open_groups()
    experiment.entries_help = lambda: help_of(settings, named)
    return settled


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that differ, nested ones alone."""
    changed: dict[str, Any] = {}
    for name, value in after.items():
        former = before.get(name)
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            inner = _changed(former, value)
            if inner:
                changed[name] = inner
        elif (former is None and value is not None) or (name in before and former != value):
            changed[name] = value
    return changed
