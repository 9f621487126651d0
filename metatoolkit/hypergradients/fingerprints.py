"""Values that Python code reads beside its arguments: what a trace of that code counts on."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Estimator

PLAIN = frozenset(
    (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)
)
"""Types whose values are compared; all other objects are told by their identity."""

_STORES = frozenset(("_parameters", "_buffers", "_modules"))
_LIBRARIES = ("torch", "metatoolkit", "numpy", "math", "functools", "typing", "builtins")
_CONTAINERS = (dict, set, list, tuple)
_DEPTH = 4


class Fingerprints:
    """Tells objects by the plain values that they hold, as far as these can be seen.

    Of a function these are its code, defaults, the variables that it closes over and the global
    ones that it names, and those of the functions of its module that it names; of a module the
    attributes of its parts; of other objects their attributes. What else a function reads (entries
    of the environment, files, a number that a function of another module holds) is not seen.

    Attributes:
        pins: Objects that are told by their identity.
    """

    def __init__(self) -> None:
        self.pins: list[Any] = []
        self._open: set[int] = set()

    def of(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return what tells a value from others.

        Args:
            value: Anything.
            depth: Number of levels of objects that are looked into.
        """
        kind = type(value)
        if kind in PLAIN:
            return kind, value
        if kind in (tuple, list):
            return kind, tuple([self.of(part, depth) for part in value])
        if isinstance(value, dict):
            return tuple([(name, self.of(part, depth)) for name, part in value.items()])
        if isinstance(value, enum.Enum):
            return kind, value.name
        if kind in (set, frozenset) and all(type(part) in PLAIN for part in value):
            return kind, frozenset(value)
        if getattr(kind, "counts_calls", False):
            return kind
        if depth == 0 or id(value) in self._open:
            return self._pinned(value)
        self._open.add(id(value))
        try:
            return self._inside(value, depth - 1)
        finally:
            self._open.discard(id(value))

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, types.FunctionType):
            return self._of_function(value, depth)
        if isinstance(value, types.MethodType):
            return self.of(value.__func__, depth), self.of(value.__self__, depth)
        if isinstance(value, functools.partial):
            parts = (value.args, dict(value.keywords))
            return self.of(value.func, depth), self.of(parts, depth)
        if isinstance(value, nn.Module):
            return self._pinned(value), self.of_modules(value)
        if isinstance(value, Tensor | type | types.ModuleType) or not hasattr(value, "__dict__"):
            return self._pinned(value)
        own = self.of_attributes(value, depth)
        is_ours = type(value).__module__.startswith("metatoolkit.")
        return (type(value) if is_ours else self._pinned(value)), own

    def of_attributes(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return what tells an object from others of its class.

        Args:
            value: An object with attributes.
            depth: Number of levels of objects that are looked into.
        """
        return tuple([(name, self.of(part, depth)) for name, part in vars(value).items()])

    def of_estimator(self, estimator: Estimator) -> Any:
        """Return what tells an estimator from others; what it draws and what it says are left out.

        Args:
            estimator: The estimator.
        """
        left_out = ("traits", "_draws", "compile", "_compiler", "_rounded")
        own = {name: part for name, part in vars(estimator).items() if name not in left_out}
        return type(estimator), self.of(own)

    def of_modules(self, root: nn.Module) -> Any:
        """Return what tells the parts of a module by: modes, attributes and hooks.

        Parameters, buffers and parts are left out, which a problem looks at by itself.

        Args:
            root: The module.
        """
        found: list[Any] = []
        classes = set()
        for module in root.modules():
            for name, part in vars(module).items():
                kind = type(part)
                if kind in PLAIN:
                    found.append((kind, part))
                elif name not in _STORES and not (isinstance(part, _CONTAINERS) and not part):
                    found.append((name, self.of(part, 2)))
            found.append(type(module))
            classes.add(type(module))
        for kind in classes:
            for owner in kind.__mro__:
                if _is_library(owner.__module__):
                    break
                found += [self.of(part, 2) for part in map(_plainly, vars(owner).values())]
        return tuple(found)

    def _of_function(self, function: types.FunctionType, depth: int) -> Any:
        found: list[Any] = [function.__code__, self.of(function.__defaults__, depth)]
        if vars(function):
            found.append(self.of(vars(function), depth))
        if function.__kwdefaults__:
            found.append(self.of(function.__kwdefaults__, depth))
        if function.__closure__:
            for cell in function.__closure__:
                try:
                    found.append(self.of(cell.cell_contents, depth))
                except ValueError:
                    found.append("empty")
        if not _is_library(function.__module__ or ""):
            found += self._of_globals(function, depth)
        return tuple(found)

    def _of_globals(self, function: types.FunctionType, depth: int) -> Iterable[Any]:
        names, home = _names(function.__code__), function.__globals__
        for name in names:
            value = home.get(name, _names)
            if value is _names or isinstance(value, type):
                continue
            if isinstance(value, types.ModuleType):
                if not _is_library(value.__name__):
                    yield self._of_module_named(value, names)
            elif not isinstance(value, types.FunctionType) or value.__globals__ is home:
                yield name, self.of(value, depth)
            else:
                yield name, self._pinned(value)

    @staticmethod
    def _of_module_named(module: types.ModuleType, names: Iterable[str]) -> Any:
        own: Mapping[str, Any] = vars(module)
        return tuple([(n, own[n]) for n in names if n in own and type(own[n]) in PLAIN])

    def _pinned(self, value: Any) -> Any:
        self.pins.append(value)
        return type(value), id(value)


def _plainly(part: Any) -> Any:
    """Return the function of a method, or a value of a class that is plain; else nothing."""
    function = getattr(part, "fget", getattr(part, "__func__", part))
    return function if type(function) in PLAIN | {types.FunctionType} else None


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names and attributes that code names, with those of code within it."""
    inside = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(name for part in inside for name in part)]))


@functools.cache
def _is_library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES
