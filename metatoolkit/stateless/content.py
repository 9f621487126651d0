"""What modules hold, in a form that tells at once whether they hold it still."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import Tensor, nn

_STORES = ("_modules", "_parameters", "_buffers")


class Content:
    """The objects that modules hold by now: their parts, parameters and buffers.

    Args:
        roots: The modules, whose parts count, too.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = {id(module): module for root in roots for module in root.modules()}
        self._stores = [
            (vars(module), name, store, [*store], [*store.values()])
            for module in modules.values()
            for name in _STORES
            for store in [vars(module)[name]]
        ]
        parameters = {id(p): p for module in modules.values() for p in module._parameters.values()}
        self._parameters = [p for p in parameters.values() if p is not None]
        self._frozen = [not p.requires_grad for p in self._parameters]

    def is_present(self) -> bool:
        """Return whether the modules hold these very objects, and as many of them frozen."""
        for attributes, name, store, keys, values in self._stores:
            if attributes[name] is not store or len(store) != len(keys):
                return False
            if keys and ([*store] != keys or not all(map(operator.is_, store.values(), values))):
                return False
        return [not p.requires_grad for p in self._parameters] == self._frozen

    def hooked(self) -> Tensor | None:
        """Return a parameter with a hook on its gradient that is not frozen, if there is one."""
        for tensor in self._parameters:
            hooks = tensor._backward_hooks or tensor._post_accumulate_grad_hooks
            if hooks and tensor.requires_grad:
                return tensor
        return None
