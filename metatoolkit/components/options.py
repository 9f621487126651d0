"""Options of a component, checked against the signature of what they are for."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Union

from metatoolkit.errors import ConfigurationError, UnknownNameError

_PLAIN = (bool, int, float, str, type(None))


def check_options(component: Callable[..., Any], what: str, options: Mapping[str, Any]) -> None:
    """Raise unless a component can be made with options.

    Types are checked where the signature names plain ones (numbers, flags, texts, ``None``,
    literals); all others are left to the component. Names among the ``former_options`` of a
    component are left to it, too.

    Args:
        component: A class or a function.
        what: What it is, in errors.
        options: The options by name.

    Raises:
        UnknownNameError: It has no such option, or none of this value among its literals.
        ConfigurationError: One that it needs is missing, or one has a wrong type.
    """
    parameters = inspect.signature(component).parameters
    variable = [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if not variable:
        former = getattr(component, "former_options", ())
        refuse_unknown(what, [name for name in options if name not in former], named)
    missing = [n for n, p in named.items() if p.default is p.empty and n not in options]
    if missing:
        raise ConfigurationError(f"{what} needs the option {missing[0]}; give it.")
    for name, annotation in _annotations(component).items():
        if name in options:
            _check_value(f"option {name} of {what}", options[name], annotation)


def refuse_unknown(what: str, options: Iterable[str], accepted: Collection[str]) -> None:
    """Raise unless all options are among the accepted ones.

    Args:
        what: What they are for, in the error.
        options: Names of the options.
        accepted: Names of those that there are.

    Raises:
        UnknownNameError: One is not; the nearest name is told.
    """
    for name in options:
        if name not in accepted:
            raise UnknownNameError(f"option of {what}:", name, accepted)


def _annotations(component: Callable[..., Any]) -> dict[str, Any]:
    component = getattr(component, "func", component)
    function = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except NameError:
        # What is imported for type checkers alone has no value here.
        return {}


def _check_value(what: str, value: Any, annotation: Any) -> None:
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    literals = [
        one for m in members if typing.get_origin(m) is Literal for one in typing.get_args(m)
    ]
    plain = [member for member in members if member in _PLAIN]
    if len(plain) + (len(literals) > 0) < len(members):
        return
    if any(value == one and type(value) is type(one) for one in literals):
        return
    if any(_is_of(value, kind) for kind in plain):
        return
    if isinstance(value, str) and any(isinstance(one, str) for one in literals):
        raise UnknownNameError(what, value, [*literals, *(["None"] if None in plain else [])])
    accepted = [*map(repr, literals), *("None" if k is type(None) else k.__name__ for k in plain)]
    raise ConfigurationError(f"{what} is {value!r}; accepted: {' or '.join(accepted)}.")


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
