"""Refusal of a forward pass that changes parameters in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.state import Tensors
from metatoolkit.stateless.graphs import taken_outside


def changed_in_place(name: str) -> str:
    """Return the message for a parameter that a forward pass changes.

    Args:
        name: Name of the parameter.
    """
    return (
        f"a forward pass changes the parameter {name!r} in place, as an embedding with max_norm "
        "or a clamp_ of a weight does, so that an evaluation is no function of its arguments. "
        "Let forward() use a changed copy, for instance F.embedding(x, weight.renorm(2, 0, 1.0)) "
        "or weight.clamp(-1, 1)."
    )


class Untouched(TorchDispatchMode):
    """Raises before an operation of the body writes into one of several tensors, or reads others.

    Memory is what is compared, so that ``.data``, ``detach`` and views hide nothing.

    Args:
        tensors: The tensors by name.
        kind: Name of the loss that the body computes.
        live: Tensors in whose places these stand, which must not be read; by name.

    Raises:
        UnsupportedError: An operation is about to write into one.
        ConfigurationError: An operation is about to read one that another stands for.
    """

    def __init__(self, tensors: Tensors, kind: str = "", live: Tensors | None = None) -> None:
        super().__init__()
        self._names = {_memory(t): name for name, t in tensors.items() if t.numel()}
        others = {_memory(t): name for name, t in (live or {}).items() if t.numel()}
        self._others = {m: name for m, name in others.items() if m not in self._names}
        self._kind = kind

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            named = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            named |= kwargs or {}
            for argument in func._schema.arguments:
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                for tensor in tree_leaves(named.get(argument.name)):
                    if isinstance(tensor, Tensor) and _memory(tensor) in self._names:
                        raise UnsupportedError(changed_in_place(self._names[_memory(tensor)]))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and _has_memory(tensor):
                name = self._others.get(_memory(tensor))
                if name is not None:
                    raise ConfigurationError(taken_outside(self._kind, name))
        return func(*args, **(kwargs or {}))


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and type(tensor) in (Tensor, nn.Parameter)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
