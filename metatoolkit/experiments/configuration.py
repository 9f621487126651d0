"""The typed definition of a configuration: default, type, range and help of each entry, once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from metatoolkit.errors import ConfigurationError, optional_import
from metatoolkit.experiments.accepted import explained
from metatoolkit.experiments.entries import Among as Among
from metatoolkit.experiments.entries import Count as Count
from metatoolkit.experiments.entries import CountOrZero as CountOrZero
from metatoolkit.experiments.entries import Device as Device
from metatoolkit.experiments.entries import Field as Field
from metatoolkit.experiments.entries import Milestones as Milestones
from metatoolkit.experiments.entries import NotNegative as NotNegative
from metatoolkit.experiments.entries import Positive as Positive
from metatoolkit.experiments.entries import Seed as Seed
from metatoolkit.experiments.entries import Share as Share
from metatoolkit.experiments.entries import ShareBelowOne as ShareBelowOne
from metatoolkit.experiments.entries import Text as Text
from metatoolkit.experiments.entries import Words as Words
from metatoolkit.experiments.entries import entry as entry

with optional_import("metatoolkit.experiments"):
    from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Definition of a configuration: one typed field an entry, made by :func:`entry`.

    A field whose type is a class of settings is a group of entries. Types are those of Python and
    pydantic, of which values are taken as they are: 1 is no text, ``True`` is not 1, and no number
    is NaN or infinite. Configurations stay dictionaries, of which this class knows defaults and
    what they may hold.

    Example:
        >>> from typing import Literal
        >>> class MySettings(Settings):
        ...     steps: Count = entry(100, "Steps of training.")
        ...     optimizer: Literal["adam", "sgd"] = entry("adam", "What moves the parameters.")
        >>> MySettings.defaults()
        {'steps': 100, 'optimizer': 'adam'}
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the configuration by default, without the entries that a run must give."""
        return {
            name: _dumped(field.default)
            for name, field in cls.model_fields.items()
            if not field.is_required()
        }

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Raise unless every entry of a configuration has a value that its type accepts.

        Args:
            config: The configuration.

        Raises:
            ConfigurationError: An entry is missing, or its value is not accepted; the message names
                it, what was given and what is accepted.
            UnknownNameError: A name is unknown, of an entry or in its value.
        """
        try:
            checked = cls.model_validate(_plain(config))
        except ValidationError as error:
            raise explained(cls, config, error.errors()[0]) from None
        for name in _missing(checked):
            raise ConfigurationError(f"{name} is missing in the configuration; give it.")

    @classmethod
    def settle(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Check a configuration and return it with what follows from its entries filled in.

        Args:
            config: The configuration.

        Raises:
            ConfigurationError: As in :meth:`check`.
            UnknownNameError: As in :meth:`check`.
        """
        cls.check(config)
        return dict(config)

    @classmethod
    def open_groups(cls) -> tuple[str, ...]:
        """Return the groups that take more entries than they have by default."""
        return tuple(
            name for name, group in cls.groups() if group.model_config.get("extra") == "allow"
        )

    @classmethod
    def groups(cls) -> Iterator[tuple[str, type[Settings]]]:
        """Iterate over the fields that are groups of entries, with their classes."""
        for name, field in cls.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                yield name, field.annotation


class OpenSettings(Settings):
    """A group that takes more entries than it has by default, such as options of a component."""

    model_config = ConfigDict(extra="allow")


def _dumped(value: Any) -> Any:
    if not isinstance(value, Settings):
        return copy.deepcopy(value)
    return {name: _dumped(getattr(value, name)) for name in type(value).model_fields}


def _missing(checked: Settings, prefix: str = "") -> Iterator[str]:
    """Iterate over entries that have their defaults because they were not given."""
    for name in type(checked).model_fields:
        value = getattr(checked, name)
        if name not in checked.model_fields_set:
            yield f"{prefix}{name}"
        elif isinstance(value, Settings):
            yield from _missing(value, f"{prefix}{name}.")


def _plain(value: Any) -> Any:
    """Return mappings as dictionaries and tuples as lists, as the record stores them."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def check_at_most(entry: str, value: int, most: int, what: str) -> None:
    """Raise if an entry asks for more than there is.

    Args:
        entry: Name of the entry.
        value: Its value.
        most: What there is.
        what: Of what, in the plural.

    Raises:
        ConfigurationError: It does.
    """
    if value > most:
        raise ConfigurationError(f"{entry} is {value}, but there are {most} {what}; lower it.")
