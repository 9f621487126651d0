"""What a loss detaches, recorded in one pass and given back in others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DETACHING = (torch.Tensor.detach, torch.detach, torch.Tensor.data.__get__)  # type: ignore[attr-defined]


class RecordDetached(TorchFunctionMode):
    """Keeps each tensor that the body detaches, in order.

    Attributes:
        values: The tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in DETACHING:
            self.values.append(result)
        return result


class ReplayDetached(TorchFunctionMode):
    """Lets the body detach what was recorded before, so that it is a constant of a difference.

    A derivative takes what a loss detaches for a constant, as Meta-Weight-Net does with the losses
    that it weights; a difference of values would see it change.

    Args:
        values: What :class:`RecordDetached` kept in a pass that detached in the same order.
    """

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self._values = iter(values)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in DETACHING:
            known = next(self._values, result)
            return known if known.shape == result.shape else result
        return result
