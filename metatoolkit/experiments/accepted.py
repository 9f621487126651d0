"""What the entries of a configuration accept, in the words of errors and of help."""

from __future__ import annotations

import inspect
import shutil
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from metatoolkit.components import Registry
from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.experiments.entries import Among, Words

with optional_import("metatoolkit.experiments"):
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from metatoolkit.experiments.configuration import Settings

_BOUNDS = {"ge": "of at least", "le": "of at most", "gt": "above", "lt": "below"}
_COLUMN, _WIDTH = 34, 100


def words_of(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return what a type accepts, such as ``"a finite number above 0 or None"``.

    Args:
        annotation: The type.
        metadata: What stands beside it, as pydantic takes a field apart.
    """
    known = list(_flat(metadata))
    for one in known:
        if isinstance(one, Words):
            return one.words
        if isinstance(one, Among):
            if isinstance(one.names, Registry):
                return f"the name of a registered {one.names.kind}"
            return f"one of {', '.join(map(repr, one.names))}"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words_of(parts[0], [*parts[1:], *known])
    if origin in (Union, types.UnionType):
        return " or ".join(words_of(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    bounds = {
        name: value
        for one in known
        for name in (*_BOUNDS, "min_length", "max_length")
        if (value := getattr(one, name, None)) is not None
    }
    if origin is list:
        least, most = bounds.get("min_length", 0), bounds.get("max_length")
        length = f" of at least {least}" if least else ""
        if most is not None:
            length = f" of {most}" if least == most else f" of {least} to {most}"
        return f"a list{length}, each {words_of(parts[0])},"
    if annotation is int:
        lower = f" from {bounds['ge']}" if "ge" in bounds else ""
        upper = f" to {bounds['le']}" if "le" in bounds else " on" if lower else ""
        return f"an integer{lower}{upper}"
    if annotation is float:
        told = [f"{words} {bounds[name]:g}" for name, words in _BOUNDS.items() if name in bounds]
        return " ".join(["a finite number", " and ".join(told)]).strip()
    named = {bool: "True or False", str: "a text", type(None): "None", Any: "anything"}
    return named.get(annotation, getattr(annotation, "__name__", str(annotation)))


def names_of(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[str]:
    """Iterate over the names that a type accepts.

    Args:
        annotation: The type.
        metadata: What stands beside it.
    """
    for one in _flat(metadata):
        if isinstance(one, Among):
            yield from one.names
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (part for part in parts if isinstance(part, str))
    elif origin is Annotated:
        yield from names_of(parts[0], parts[1:])
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from names_of(part)


def entries_of(settings: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Iterate over the entries of a configuration, those of groups by their dotted names.

    Args:
        settings: The definition.
        prefix: What stands before the names.
    """
    groups = dict(settings.groups())
    for name, field in settings.model_fields.items():
        if name in groups:
            yield from entries_of(groups[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def explained(
    settings: type[Settings], config: Mapping[str, Any], found: Mapping[str, Any]
) -> ConfigurationError:
    """Return the error of this toolkit for one of pydantic's.

    Args:
        settings: The definition of the configuration.
        config: The configuration that does not follow it.
        found: What pydantic found.
    """
    path: list[str] = []
    group: type[Settings] = settings
    value: Any = config
    field: FieldInfo | None = None
    for part in found["loc"]:
        groups = dict(group.groups())
        path.append(str(part))
        value = value.get(part) if isinstance(value, Mapping) else value
        field = group.model_fields.get(str(part))
        if part not in groups:
            break
        group = groups[part]
    entry = ".".join(path)
    if found["type"] == "extra_forbidden":
        return UnknownNameError(
            "configuration entry", entry, [name for name, _ in entries_of(settings)]
        )
    if not path:
        return ConfigurationError(str(found.get("ctx", {}).get("error", found["msg"])))
    if found["type"] == "missing":
        return ConfigurationError(f"{entry} is missing in the configuration; give it.")
    if field is None or path[-1] in dict(_parent(settings, path).groups()):
        held = ", ".join(group.model_fields) or "that it takes"
        return ConfigurationError(
            f"{entry} is {value!r}; a mapping with the entries {held} is needed."
        )
    names = list(names_of(field.annotation, field.metadata))
    if names and isinstance(value, str):
        beside = get_args(field.annotation)
        plain = [str(one) for one in (True, False, None) if type(one) in beside]
        return UnknownNameError(entry, value, [*names, *plain])
    if found["type"] == "value_error" and not _says_more(field.metadata):
        return ConfigurationError(f"{entry} is {value!r}: {found['ctx']['error']}")
    words = words_of(field.annotation, field.metadata)
    return ConfigurationError(f"{entry} is {value!r}; {words} is needed.")


def help_of(settings: type[Settings], named: Iterable[str] = ()) -> str:
    """Return the part of a help text on the entries of a configuration.

    Args:
        settings: The definition; its own entries come first, then those of its bases.
        named: Names of named configurations.
    """
    width = max(60, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))
    lines = ["Entries, given after the word `with`, such as `with seed=3`:"]
    lines += _rows(settings, settings.defaults(), "", width)
    if named:
        lines += ["", "Named configurations, given after the word `with`, too:"]
        lines += _wrapped(", ".join(named), width, "  ")
    return "\n".join(lines)


def _rows(
    settings: type[Settings], defaults: Mapping[str, Any], prefix: str, width: int
) -> Iterator[str]:
    groups = dict(settings.groups())
    for name in _own_first(settings):
        field, entry = settings.model_fields[name], f"{prefix}{name}"
        if name not in groups:
            words = words_of(field.annotation, field.metadata).rstrip(",")
            text = f"{field.description} {words[0].upper()}{words[1:]}."
            default = "..." if field.is_required() else defaults[name]
            yield from _row(f"{entry}={default}", text, width)
            continue
        yield from _rows(groups[name], defaults[name], f"{entry}.", width)
        if name in settings.open_groups():
            yield from _row(f"{entry}.OPTION=VALUE", str(field.description), width)


def _row(head: str, text: str, width: int) -> list[str]:
    lines = _wrapped(text, width, " " * _COLUMN)
    if len(head) + 2 >= _COLUMN:
        return [f"  {head}", *lines]
    return [f"  {head}".ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    options: Any = {"initial_indent": indent, "subsequent_indent": indent}
    return textwrap.wrap(text, width, break_on_hyphens=False, **options)


def _own_first(settings: type[Settings]) -> list[str]:
    classes = (one for one in settings.__mro__ if issubclass(one, BaseModel))
    names = (name for one in classes for name in inspect.get_annotations(one))
    return [name for name in dict.fromkeys(names) if name in settings.model_fields]


def _says_more(metadata: Iterable[Any]) -> bool:
    return any(isinstance(one, Words | Among) for one in _flat(metadata))


def _parent(settings: type[Settings], path: list[str]) -> type[Settings]:
    for part in path[:-1]:
        settings = dict(settings.groups())[part]
    return settings


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from one.metadata
        else:
            yield one
