"""Hyper-parameters as they are at one step, each parameter's own by its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from metatoolkit.components.patterns import matches
from metatoolkit.errors import ConfigurationError
from metatoolkit.state import Tensors

Special = Sequence[tuple[Collection[str], dict[str, Any]]]
"""Patterns of each group with the values that hold for the names that these match."""

_NUMBERS = {float, int, bool}


def are_numbers(values: Mapping[str, Any]) -> bool:
    """Return whether hyper-parameters are plain numbers and flags, each of them.

    Args:
        values: Values by name.
    """
    return _NUMBERS.issuperset(map(type, values.values()))


class Evaluated:
    """A function from the name of a parameter to its hyper-parameters at a step, by their names.

    For parameters that have the same values it returns one and the same object.

    Args:
        common: Values by name, those of all parameters that no group holds. A value may be a
            mapping from names of parameters to values.
        special: Those of groups, the first that matches a name holding.
        leaves: Identities of the leaves that the graph of a value reaches, by the value's identity.

    Attributes:
        leaves: As given.
        common: The values, where all parameters have the same.
    """

    def __init__(
        self,
        common: dict[str, Any],
        special: Special = (),
        leaves: Mapping[int, set[int]] | None = None,
    ) -> None:
        self.leaves = {} if leaves is None else leaves
        self._common = common, _are_several(common)
        self.common = None if special or self._common[1] else common
        self._special = [(patterns, own, _are_several(own)) for patterns, own in special]

    @classmethod
    def of_numbers(cls, values: dict[str, Any]) -> Evaluated:
        """Return the function for numbers that all parameters have.

        Args:
            values: The numbers by name.
        """
        own = object.__new__(cls)
        own.leaves, own.common, own._common, own._special = {}, values, (values, False), []
        return own

    def __call__(self, name: str) -> dict[str, Any]:
        """Return the hyper-parameters of one parameter.

        Args:
            name: Name of the parameter.

        Raises:
            ConfigurationError: A value is told by the names of parameters, but not for this one.
        """
        values, several = self._common
        for patterns, own, each in self._special:
            if matches(name, patterns):
                values, several = own, each
                break
        return {o: _of_parameter(o, v, name) for o, v in values.items()} if several else values

    def tensors(self) -> Iterator[Tensor]:
        """Yield all values that are tensors, whichever parameters they are for."""
        for own in (self._common[0], *(own for _, own, _ in self._special)):
            for value in own.values():
                for part in value.values() if isinstance(value, Mapping) else (value,):
                    if isinstance(part, Tensor):
                        yield part

    def map(self, function: Callable[[Tensor], Tensor]) -> Evaluated:
        """Return the same with ``function`` applied to each tensor, once to each object.

        Args:
            function: Called with one tensor, returns one tensor.
        """
        done: dict[int, Any] = {}
        special = [(patterns, _mapped(own, function, done)) for patterns, own, _ in self._special]
        return Evaluated(_mapped(self._common[0], function, done), special)


def leaves_of(value: Tensor, given: Tensors) -> set[int]:
    """Return the identities of the leaves that the graph of a value reaches.

    Args:
        value: A tensor that requires a gradient.
        given: Tensors by name that are not looked behind.
    """
    if value.grad_fn is None:
        return {id(value)}
    # The objects themselves, since their identity lasts as long as they do.
    seen = {tensor.grad_fn for tensor in given.values() if tensor.grad_fn is not None}
    found: set[int] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        waiting += [child for child, _ in node.next_functions if child is not None]
    return found


def _mapped(
    values: Mapping[str, Any], function: Callable[[Tensor], Tensor], done: dict[int, Any]
) -> dict[str, Any]:
    """Return values with a function applied to each tensor that it was not applied to before.

    A closure that calls itself would keep all of them alive until the next collection.
    """
    found = dict(values)
    for name, value in values.items():
        if id(value) not in done:
            if isinstance(value, Tensor):
                done[id(value)] = function(value)
            elif isinstance(value, Mapping):
                done[id(value)] = _mapped(value, function, done)
        found[name] = done.get(id(value), value)
    return found


def _are_several(values: Mapping[str, Any]) -> bool:
    """Return whether a value is told by the names of parameters."""
    return any(isinstance(v, Mapping) for v in values.values() if not isinstance(v, float | int))


def _of_parameter(own: str, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if name not in value:
        raise ConfigurationError(
            f"{own} is a function that returns values by parameter name, but none for {name!r}; "
            f"let it return one for each inner parameter that no group gives a {own} of its own."
        )
    return value[name]
