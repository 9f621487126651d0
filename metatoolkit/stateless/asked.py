"""What a loss asks of tensors beyond their values, looked for in its first pass."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from metatoolkit.state import Tensors

_QUESTIONS: dict[str, Any] = {n: vars(torch._C.TensorBase)[n] for n in ("requires_grad", "grad_fn")}
_REQUIRES_GRAD = _QUESTIONS["requires_grad"].__get__
NODE = _QUESTIONS["grad_fn"].__get__
"""The function by which a tensor is asked for its node of the graph."""


class Asked(TorchFunctionMode):
    """Notes questions whose answers differ between passes with and without gradients.

    A penalty on ``p for p in model.parameters() if p.requires_grad`` would be none in a pass that
    needs no gradient in θ. Code of torch, which chooses kernels so, is left alone.

    Args:
        tensors: Tensors that the pass was given.

    Attributes:
        requires_grad: Whether it was asked if one of them requires a gradient.
        nodes: Whether a node of the graph was looked at, on which hooks may stand.
    """

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._given = {id(tensor) for tensor in tensors.values()}
        self.requires_grad = False
        self.nodes = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _REQUIRES_GRAD and id(args[0]) in self._given:
            self.requires_grad |= asker().split(".")[0] != "torch"
        elif func == NODE:
            self.nodes = True
        return func(*args, **(kwargs or {}))


def asker() -> str:
    """Return the module whose code called a function of torch, our own left out.

    It is asked from within ``__torch_function__``, which other modes may have called.
    """
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("metatoolkit.") and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))
