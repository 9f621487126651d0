"""Random numbers of tasks that run side by side, each drawn from the key of its own task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metatoolkit.errors import UnsupportedError
from metatoolkit.randomness.keys import go_to, place, seeded


class SideBySide(TorchDispatchMode):
    """Draws the random numbers of a ``torch.vmap`` over tasks task by task.

    Each task gets the numbers that it would draw by itself under ``seeded`` with its key. The
    mode stands around a ``torch.vmap(..., randomness="different")``, below which each drawing
    operator has a leading dimension of tasks.

    Args:
        keys: One key for each task.

    Attributes:
        drawn: Whether anything was drawn.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        super().__init__()
        self._keys = keys
        self._places: dict[torch.device, list[Any]] = {}
        self.drawn = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operator, for each task by itself where it draws.

        Raises:
            UnsupportedError: It draws, but not with a leading dimension of tasks.
        """
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.drawn = True
        parts = self._parts(args)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if parts is None or len(tensors) > isinstance(args[0], Tensor):
            raise UnsupportedError(f"{func} draws random numbers that are not told apart by task.")
        device = tensors[0].device if tensors else kwargs.get("device") or torch.device("cpu")
        found = self._in_turn(device, [functools.partial(func, *part, **kwargs) for part in parts])
        return args[0] if func._schema.is_mutable else torch.stack(found)

    def _parts(self, args: tuple[Any, ...]) -> list[tuple[Any, ...]] | None:
        """Return the arguments of each task."""
        count = len(self._keys)
        if isinstance(args[0], Tensor):
            if args[0].dim() == 0 or len(args[0]) != count:
                return None
            return [(args[0][task], *args[1:]) for task in range(count)]
        sizes = [at for at, value in enumerate(args) if isinstance(value, list)]
        if len(sizes) != 1 or args[sizes[0]][:1] != [count]:
            return None
        first, size, rest = args[: sizes[0]], args[sizes[0]], args[sizes[0] + 1 :]
        return [(*first, size[1:], *rest)] * count

    def _in_turn(self, device: torch.device, calls: list[Callable[[], Tensor]]) -> list[Tensor]:
        """Make a call for each task, at the place of its random numbers."""
        devices = (device,)
        if device not in self._places:
            self._places[device] = []
            for key in self._keys:
                with seeded(key, devices, python=False):
                    self._places[device].append(place(devices))
        before, found = place(devices), []
        for task, call in enumerate(calls):
            go_to(self._places[device][task])
            found.append(call())
            self._places[device][task] = place(devices)
        go_to(before)
        return found
