"""How calls of the functions of torch are looked at: their arguments, bodies and random numbers."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.detached import REMEDY

_OPENED = ("torch.nn.functional", "torch.functional", "torch._tensor")
_HEAD = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_bodies: dict[Any, Any] = {}
_ATTRIBUTES = "device dtype is_cpu is_cuda is_leaf layout ndim requires_grad shape".split()
_METHODS = "__len__ dim element_size is_floating_point ndimension nelement numel size".split()
METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
        *(getattr(Tensor, name) for name in _METHODS),
    ]
)
"""Functions that tell of a tensor what no value in it changes; a short loss calls little else."""


def random_states(points: Sequence[Tensor]) -> list[tuple[int | None, Tensor]]:
    """Return the states of the generators that a function of these tensors may draw from.

    Args:
        points: The tensors.
    """
    devices = sorted({p.device.index or 0 for p in points if p.device.type == "cuda"})
    return [(None, torch.get_rng_state()), *((i, torch.cuda.get_rng_state(i)) for i in devices)]


def set_random_states(states: Sequence[tuple[int | None, Tensor]]) -> None:
    """Put generators back.

    Args:
        states: What :func:`random_states` returned.
    """
    for index, state in states:
        if index is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, index)


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any
) -> Any:
    """Return an argument of a call.

    Args:
        args: Arguments by position.
        kwargs: Arguments by name.
        position: Place of the argument among the former.
        name: Its name among the latter.
        default: What it is where it is not given.
    """
    return args[position] if len(args) > position else kwargs.get(name, default)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a call, which torch calls ``input``.

    Args:
        args: Arguments by position.
        kwargs: Arguments by name.
    """
    return args[0] if args else kwargs["input"]


def as_tuple(result: Any) -> tuple[Any, ...]:
    """Return the results of a function as a tuple.

    Args:
        result: What the function returned.
    """
    return result if isinstance(result, tuple) else (result,)


def has_derivatives(tensor: Tensor) -> bool:
    """Return whether a tensor is of a type that can be differentiated.

    Args:
        tensor: The tensor.
    """
    return tensor.is_floating_point() or tensor.is_complex()


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among values and in the lists among them.

    Args:
        values: Arguments of a function.
    """
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(value)
    return found


def body_of(func: Any) -> Any:
    """Return a function of torch that is written in Python such that what it calls is seen.

    Args:
        func: Any function.

    Returns:
        The body, or ``None`` for all others.
    """
    if func not in _bodies:
        body = None
        if isinstance(func, types.FunctionType) and func.__module__ in _OPENED:
            if any(name in func.__code__.co_names for name in _HEAD):
                scope = {**func.__globals__, **{name: lambda *_: False for name in _HEAD}}
                body = types.FunctionType(
                    func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
                )
                body.__kwdefaults__ = func.__kwdefaults__
        _bodies[func] = body
    return _bodies[func]


class NoHandle:
    """Stands for the handle of a hook on what has no gradient in this pass."""

    def remove(self) -> None:
        """Do nothing."""


def is_custom(func: Any) -> bool:
    """Return whether a function is an operator that others have registered.

    Args:
        func: A function that a mode was given, or a class of custom functions.
    """
    if not isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return False
    name = func._qualified_op_name if isinstance(func, torch._ops.OpOverloadPacket) else func.name()
    return name.split("::")[0] not in ("aten", "prims", "prim")


def other_calls(what: str) -> UnsupportedError:
    """Return the error for a loss that does not do again what it did.

    Args:
        what: The difference, as a clause.
    """
    return UnsupportedError(
        "the training loss does other things when it is evaluated again with the same random "
        f"numbers ({what}): it depends on something that changes from call to call, such as a "
        f"counter or a random generator of its own. {REMEDY}"
    )
