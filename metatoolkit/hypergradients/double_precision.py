"""A problem in float64 for a while: its modules, and what its losses compute in other types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.exchange import Again, turn

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


def to_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 or complex128, and one of integers as it is.

    Args:
        tensor: Any tensor.
    """
    wide = _WIDE.get(tensor.dtype)
    return tensor if wide is None else tensor.to(wide)


class DoubleArithmetic(Again):
    """Lets the body compute in float64 where it asks for less, or brings tensors of less.

    Language models compute their losses in float32 whatever type they have, and a loss may hold
    class weights in it: rounding at that size would be all that a finite difference shows.
    """

    @override
    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return what makes the mode for what runs again during a backward pass."""
        return DoubleArithmetic

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _CASTS:
            return args[0].double()
        # What reads or sets an attribute, writes in place or asks for identity takes what is there.
        module = getattr(func, "__module__", None) or ""
        if name in ("__get__", "__set__") or module.startswith("torch.autograd"):
            return func(*args, **kwargs)
        in_place = name.endswith("_") and not name.endswith("__")
        kept = 1 if in_place or name == "__setitem__" else 0
        args = (*args[:kept], *(_widened(argument) for argument in args[kept:]))
        kwargs = {k: v if k == "out" else _widened(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _widened(argument: Any) -> Any:
    if isinstance(argument, torch.dtype):
        return _WIDE.get(argument, argument)
    if isinstance(argument, Tensor):
        return to_double(argument)
    if type(argument) in (list, tuple) and any(isinstance(entry, Tensor) for entry in argument):
        return type(argument)(_widened(entry) for entry in argument)
    return argument


@contextlib.contextmanager
def double_precision(problem: BilevelProblem) -> Iterator[None]:
    """Hold the modules of a problem in float64 for the body, in which all arithmetic is float64.

    Parameters and buffers stay the same objects, so that whatever refers to them goes on to do so:
    hyper-parameters that are λ, losses that close over a module, hooks. Nothing is copied but
    their values, which are back afterwards, bit by bit.

    Args:
        problem: The problem.

    Yields:
        Nothing.
    """
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    default = torch.get_default_dtype()
    with turn():
        try:
            for tensor in _tensors_of(problem.model, problem.meta):
                kept.append((tensor, tensor.data, tensor.grad if tensor.is_leaf else None))
                if tensor.is_leaf:
                    tensor.grad = None
                tensor.data = to_double(tensor.data)
            torch.set_default_dtype(torch.float64)
            with DoubleArithmetic():
                yield
        finally:
            torch.set_default_dtype(default)
            for tensor, data, grad in reversed(kept):
                tensor.data = data
                if tensor.is_leaf:
                    tensor.grad = grad


def _tensors_of(*roots: nn.Module) -> list[Tensor]:
    """Return each parameter and buffer of less than float64 once."""
    found: dict[int, Tensor] = {}
    for root in roots:
        for tensor in (*root.parameters(), *root.buffers()):
            if tensor.dtype in _WIDE:
                found[id(tensor)] = tensor
    return list(found.values())
