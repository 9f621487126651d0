"""Batches on a device, whatever they are made of."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import DataError
from metatoolkit.state import tree_map


def placed(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device; the given one stays where it is.

    Objects that have a method ``to`` (a ``PackedSequence``, a ``BatchEncoding``, one of the user's
    own) are moved by it, containers and dataclasses entry by entry.

    Args:
        batch: Any batch, ``None`` included.
        device: Where to.

    Raises:
        DataError: It holds an object with tensors elsewhere and without a method ``to``.
    """

    def move(value: Any) -> Any:
        if _moves_itself(value):
            # Some move themselves in place, and the batch may be drawn again.
            moving = copy.copy(value)
            moved = moving.to(device)
            return moving if moved is None else moved
        for name, part in _attributes(value).items():
            tensors = [t for t in torch.utils._pytree.tree_leaves(part) if isinstance(t, Tensor)]
            if any(tensor.to(device) is not tensor for tensor in tensors):
                raise DataError(
                    f"a batch holds a {type(value).__name__} whose {name!r} is not on {device}, "
                    "and it is not known how to move it; give it a method to(device), or make it "
                    "a dataclass, a dictionary or a tuple."
                )
        return value

    return tree_map(
        lambda tensor: tensor.to(device, non_blocking=True),
        batch,
        own=_moves_itself,
        on_object=move,
    )


def _moves_itself(value: Any) -> bool:
    return not isinstance(value, Tensor | type) and callable(getattr(type(value), "to", None))


def _attributes(value: Any) -> dict[str, Any]:
    slots: list[str] = []
    for kind in type(value).__mro__:
        own = getattr(kind, "__slots__", ())
        slots += [own] if isinstance(own, str) else own
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})
