"""What modules hold, in a form that tells at once whether they hold it still."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

_STORES = ("_modules", "_parameters", "_buffers")
_VALUES = operator.methodcaller("values")


class Content:
    """The objects that modules hold by now: their parts, parameters and buffers.

    Args:
        roots: The modules, whose parts count, too.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = {id(module): module for root in roots for module in root.modules()}
        self._modules = [*modules.values()]
        self._holders = [(vars(module), name) for module in self._modules for name in _STORES]
        self._stores = [attributes[name] for attributes, name in self._holders]
        self._sizes = [*map(len, self._stores)]
        self._keys = [*itertools.chain.from_iterable(self._stores)]
        self._values = [*self._all()]
        parameters = {id(p): p for module in modules.values() for p in module._parameters.values()}
        self._parameters = [p for p in parameters.values() if p is not None]
        self._frozen = [not p.requires_grad for p in self._parameters]

    def is_present(self) -> bool:
        """Return whether the modules hold these very objects, and as many of them frozen."""
        # In C, since the loop over a large model would take as long as a small step.
        stores = [attributes[name] for attributes, name in self._holders]
        return (
            all(map(operator.is_, stores, self._stores))
            and [*map(len, stores)] == self._sizes
            and [*itertools.chain.from_iterable(stores)] == self._keys
            and all(map(operator.is_, self._all(), self._values))
            and [not p.requires_grad for p in self._parameters] == self._frozen
        )

    def _all(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(map(_VALUES, self._stores))

    def modes(self) -> tuple[bool, ...]:
        """Return of each module whether it is in its training mode."""
        return tuple([module.training for module in self._modules])

    def hooked(self) -> Tensor | None:
        """Return a parameter with a hook on its gradient that is not frozen, if there is one."""
        for tensor in self._parameters:
            hooks = tensor._backward_hooks or tensor._post_accumulate_grad_hooks
            if hooks and tensor.requires_grad:
                return tensor
        return None
