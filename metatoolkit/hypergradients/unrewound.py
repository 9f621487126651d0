"""What a loss can reach that no evaluation rewinds, named for an error message."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metatoolkit.problem import BilevelProblem

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CONTAINERS = (list, dict, set, deque)


def changed_by(problem: BilevelProblem, evaluate: Callable[[], Any]) -> list[str]:
    """Return names of what an evaluation of the losses changed, as far as it can be seen.

    Attributes of the modules are looked at, and what the losses close over, have as defaults or
    find among the globals of their file; things inside of these are not.

    Args:
        problem: Problem whose modules and losses are looked at.
        evaluate: Evaluates a loss.
    """
    before = dict(_reachable(problem))
    prints = {name: _print(value) for name, value in before.items()}
    evaluate()
    after = dict(_reachable(problem))
    found = []
    for name, value in after.items():
        if name not in before or prints[name] != _print(value):
            found.append(f"{name} ({_kind(value)})")
    return found


def _reachable(problem: BilevelProblem) -> Iterator[tuple[str, Any]]:
    """Yield names and values of what is no parameter, no buffer and no module."""
    for root, module in (("model", problem.model), ("meta", problem.meta)):
        for path, part in module.named_modules(prefix=root):
            for name, value in vars(part).items():
                if not name.startswith("_") and name != "training":
                    yield f"{path}.{name}", value
    for kind in ("train_loss", "valid_loss"):
        loss = getattr(problem, kind)
        while isinstance(loss, functools.partial):
            loss = loss.func
        owner = getattr(loss, "__self__", None)
        if owner is None and not hasattr(loss, "__code__"):
            owner = loss
        if owner is not None and not isinstance(owner, nn.Module) and hasattr(owner, "__dict__"):
            yield from ((f"{kind}.{name}", value) for name, value in vars(owner).items())
        yield from ((f"{name!r} of {kind}", value) for name, value in _variables(loss))


def _variables(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function closes over, has as defaults and reads of its module."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # A variable that has no value yet.
            continue
    yield from _defaults(function)
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _defaults(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a function's defaults."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    values = function.__defaults__ or ()
    yield from zip(names[len(names) - len(values) :], values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _print(value: Any) -> Any:
    """Return what differs once a value was changed in place or exchanged."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value._version
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, _CONTAINERS):
        return len(value), [
            id(item) for item in (value.values() if isinstance(value, dict) else value)
        ]
    return id(value)


def _kind(value: Any) -> str:
    if isinstance(value, _GENERATORS):
        return "a random generator of its own"
    if isinstance(value, Tensor):
        return "a tensor that is no buffer"
    if isinstance(value, int | float):
        return "a number"
    return f"a {type(value).__name__}"
