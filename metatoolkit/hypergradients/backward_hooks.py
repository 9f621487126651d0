"""Hooks that change what a backward pass computes, which a difference of values cannot see."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.detached import REMEDY
from metatoolkit.stateless.exchange import saved_by

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OWN = frozenset(("torch.autograd.graph", "torch.utils.checkpoint"))
_top_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks


def checked_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that may look at gradients, and not change them.

    Args:
        hook: A hook on a tensor or a node of the graph: what it returns, if not ``None``, takes the
            place of its first argument, a gradient or a tuple of them.

    Raises:
        UnsupportedError: When called, if the hook changes a gradient.
    """

    def checked(given: Any, *others: Any) -> Any:
        before = _gradients(given)
        marks = [_mark(g) for g in before]
        changed = hook(given, *others)
        after = before if changed is None else _gradients(changed)
        written = marks != [_mark(g) for g in before]
        if written or len(after) != len(before) or not all(map(_same, before, after)):
            raise UnsupportedError(
                "a hook on a tensor, a node of the graph or a module changes the gradient of the "
                f"training loss, so that it is not the derivative of its values. {REMEDY}"
            )
        return changed

    return checked


class CheckedNode:
    """Stands for a node of the graph; hooks that are registered on it may not change gradients.

    Args:
        node: The node.
    """

    def __init__(self, node: Any) -> None:
        self._node = node

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._node)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._node == (other._node if type(other) is CheckedNode else other))

    def __hash__(self) -> int:
        return hash(self._node)

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes that follow, checked likewise."""
        following = self._node.next_functions
        return tuple((node and CheckedNode(node), place) for node, place in following)

    def register_hook(self, hook: Callable[..., Any]) -> Any:
        """Register a hook on the gradients in the node's inputs.

        Args:
            hook: The hook.
        """
        return self._node.register_hook(checked_hook(hook))

    def register_prehook(self, hook: Callable[..., Any]) -> Any:
        """Register a hook on the gradients in the node's outputs.

        Args:
            hook: The hook.
        """
        return self._node.register_prehook(checked_hook(hook))


@contextlib.contextmanager
def lossless() -> Iterator[None]:
    """Check that hooks for saved tensors give back what they were given, while a loss runs.

    Those of torch, such as activation checkpointing and ``save_on_cpu``, do.

    Yields:
        Nothing.
    """
    around = _top_hooks(True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(saved_by(_checked_pair))
        if around is not None:
            stack.enter_context(saved_tensors_hooks(*around))
        yield


def _checked_pair(
    pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    home = getattr(pack, "__module__", None) or ""
    if home in _OWN or home.split(".")[0] == "metatoolkit":
        return pack, unpack

    def checked_pack(tensor: Tensor) -> Any:
        return _digest(tensor), pack(tensor)

    def checked_unpack(packed: Any) -> Tensor:
        digest, value = packed
        tensor = unpack(value)
        if digest != _digest(tensor):
            raise UnsupportedError(
                "hooks for saved tensors give a backward pass of the training loss other values "
                "than those of its forward pass, so that a gradient is not the derivative of its "
                f"values. Leave the hooks away. {REMEDY}"
            )
        return tensor

    return checked_pack, checked_unpack


def _digest(tensor: Tensor) -> Any:
    """Return what differs once a value or the order does: shape, type and sums of the bits."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        values = tensor
        if values.layout is not torch.strided:
            values = values.to_dense()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        bits = values.resolve_neg().reshape(-1).contiguous().view(_INTEGERS[values.itemsize])
        # Sums of rows and columns, each with a weight of its own, take little memory.
        width = math.isqrt(bits.numel()) + 1
        full = bits.numel() // width * width
        rows = bits[:full].view(-1, width)
        sums = [rows.sum(0, dtype=torch.int64), rows.sum(1, dtype=torch.int64), bits[full:].long()]
        marks = [(s * (2 * torch.arange(len(s), device=s.device) + 1)).sum() for s in sums]
        return tensor.dtype, tuple(tensor.shape), tuple(torch.stack(marks).tolist())


def _mark(gradient: Tensor | None) -> Any:
    """Return what differs once a gradient is written over, by way of its data, too."""
    if gradient is None:
        return None
    # A transform of torch.func lets no number be read.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(gradient)
    return gradient._version if wrapped else _digest(gradient)


def _gradients(given: Any) -> Sequence[Tensor | None]:
    return given if isinstance(given, tuple | list) else (given,)


def _same(before: Tensor | None, after: Tensor | None) -> bool:
    if before is None or after is None:
        return before is after
    # Zeros are equal whatever their sign, and what is no number where its bits are.
    return after is before or torch.equal(after, before) or _digest(after) == _digest(before)
