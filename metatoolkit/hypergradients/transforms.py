"""Tensors within the transforms of torch.func: whether they have a gradient, how to hold them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch._C import DisableTorchFunction, _functorch


def in_transform() -> bool:
    """Return whether a transform of torch.func is at work: ``vmap``, ``grad`` or ``jvp``."""
    return _functorch.maybe_current_level() is not None


def requires_gradient(tensor: Tensor) -> bool:
    """Return whether a gradient flows to a tensor, at any level of transforms.

    Within ``vmap`` and ``jvp`` a tensor does not tell, and the one that it wraps does.

    Args:
        tensor: The tensor.
    """
    # Not a question of the loss, as which modes would see it.
    with DisableTorchFunction():
        while not tensor.requires_grad and _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)
        return tensor.requires_grad


@dataclasses.dataclass(frozen=True)
class Outside:
    """A tensor without what transforms wrap it in, which ends with them.

    Attributes:
        tensor: The tensor, with the dimensions that ``vmap`` hides.
        layers: Level and hidden dimension of each ``vmap``, the innermost first.
    """

    tensor: Tensor
    layers: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(tensor: Tensor) -> Outside:
        """Return a tensor as it is outside of all transforms.

        Args:
            tensor: The tensor, wrapped or not.
        """
        layers = []
        while _functorch.is_functorch_wrapped_tensor(tensor):
            if _functorch.is_batchedtensor(tensor):
                hidden = _functorch.maybe_get_bdim(tensor)
                layers.append((_functorch.maybe_get_level(tensor), hidden))
            tensor = _functorch.get_unwrapped(tensor)
        return Outside(tensor, tuple(layers))

    def inside(self) -> Tensor:
        """Return the tensor as the same transforms have it when they run again."""
        tensor = self.tensor
        for level, dimension in reversed(self.layers):
            tensor = _functorch._add_batch_dim(tensor, dimension, level)
        return tensor


def taken_out(value: Any) -> Any:
    """Return a tensor, or a data class with tensors, such that it outlasts the transforms.

    Args:
        value: The value.
    """
    if not in_transform():
        return value
    return _mapped(value, Tensor, Outside.of)


def put_in(value: Any) -> Any:
    """Return what :func:`taken_out` was given, for the same transforms that run again.

    Args:
        value: What it returned.
    """
    return _mapped(value, Outside, Outside.inside) if in_transform() else value


def _mapped(value: Any, kind: type, function: Any) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_mapped(item, kind, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Outside):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(
            value, **{name: _mapped(getattr(value, name), kind, function) for name in names}
        )
    return value
