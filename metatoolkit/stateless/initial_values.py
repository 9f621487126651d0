"""What the function that sets the initial state may be, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.state import Tensors

_ACCEPTED = "None, or a function (meta) -> mapping from names of inner parameters to tensors"


def check_takes_meta(initial: Any) -> None:
    """Raise unless ``initial`` can be called with the meta-parameter module.

    Args:
        initial: What the user gave.

    Raises:
        ConfigurationError: It cannot: it is no function, or a method that is bound already.
    """
    if isinstance(initial, nn.Module) and type(initial).forward is nn.Module.forward:
        kind = type(initial).__name__
        remedy = f"{kind}.values" if hasattr(initial, "values") else "a function of it"
        raise ConfigurationError(
            f"initial is a module, {kind}; accepted: {_ACCEPTED}. Pass it as meta, and "
            f"initial={remedy}."
        )
    if not callable(initial):
        raise ConfigurationError(f"initial is a {type(initial).__name__}; accepted: {_ACCEPTED}.")
    try:
        signature = inspect.signature(initial)
    except ValueError:
        # Some built-in functions have none.
        return
    try:
        signature.bind(None)
    except TypeError as error:
        remedy = "give it the one argument meta"
        if inspect.ismethod(initial):
            kind = type(initial.__self__).__name__
            remedy = (
                f"it is bound already, to an instance of {kind}; pass the function itself, {kind}."
            )
            remedy += f"{initial.__name__}, which is called with the meta of each evaluation"
        raise ConfigurationError(
            f"initial cannot be called with meta ({error}): {remedy}. Accepted: {_ACCEPTED}."
        ) from error


def checked_initial(given: Any, live: Tensors) -> Tensors:
    """Return the values that λ sets, of the types of the inner parameters.

    Args:
        given: What ``initial`` returned.
        live: The model's inner parameters by name.

    Raises:
        ConfigurationError: It is no mapping to tensors.
        UnknownNameError: It names what is no inner parameter.
        ShapeError: A value has another shape than its parameter.
    """
    if not isinstance(given, Mapping | Iterable) or isinstance(given, Tensor):
        raise ConfigurationError(f"initial returned a {type(given).__name__}; {_RETURNS}.")
    try:
        values = dict(given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"initial returned a {type(given).__name__}; {_RETURNS}."
        ) from error
    for name, value in values.items():
        if name not in live:
            raise UnknownNameError("inner parameter in initial", name, live)
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"initial gives {name!r} a {type(value).__name__}; a tensor is needed."
            )
        if value.shape != live[name].shape:
            raise ShapeError(
                f"initial gives {name!r} the shape {tuple(value.shape)}; the parameter has "
                f"{tuple(live[name].shape)}."
            )
        values[name] = value.to(live[name].dtype)
    return values


_RETURNS = (
    "a mapping from names of inner parameters to tensors is needed, for instance "
    "dict(meta.named_parameters())"
)
