"""Configurations of the cross-lingual application."""

from applications.cross_lingual.settings import (
    DEFAULT,
    NAMED,
)


def merged(base, updates):
    return {
        name: merged(value, updates[name])
        if isinstance(value, dict) and isinstance(updates.get(name), dict)
        else updates.get(name, value)
        for name, value in base.items()
    }


def smoke(**updates):
    return merged(merged({**DEFAULT, "seed": 1}, NAMED["smoke"]), updates)
