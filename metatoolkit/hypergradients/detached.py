"""What a derivative takes for a constant, recorded in one pass and given back in others.

Automatic differentiation holds more than a difference of values does: what a loss detaches, reads
as a number or computes without recording gradients, and the piece of a piecewise function where
the point lies. :class:`HeldConstants` holds the same in passes whose results are subtracted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.transforms import Outside, requires_gradient

DETACHING = (torch.Tensor.detach, torch.detach, torch.Tensor.data.__get__)  # type: ignore[attr-defined]
"""The functions by which a tensor is cut from its graph."""

REMEDY = "Use OneStep or Unrolled, which differentiate the loss as it is."


@dataclasses.dataclass
class Cell:
    """A tensor that is held; a copy takes its place before somebody writes over it."""

    tensor: Tensor
    version: int | None
    layers: tuple[tuple[int, int], ...] = ()

    def value(self) -> Tensor:
        """Return the tensor, without a graph, as the transforms of torch.func around have it."""
        return Outside(self.tensor, self.layers).inside().detach()


@dataclasses.dataclass(frozen=True)
class Held:
    """What one call of a function of torch holds.

    Attributes:
        kind: ``"piece"``, ``"number"`` or ``"tensors"``.
        value: The piece, the number, or a cell for each tensor.
        places: Places of the tensors among the results.
    """

    kind: str
    value: Any
    places: tuple[int, ...] = ()


class HeldConstants:
    """What the passes of one difference have in common.

    A derivative takes what a loss detaches for a constant, as Meta-Weight-Net does with the losses
    that it weights; a difference of values would see it change. The same holds for numbers that it
    reads from tensors, for all that it computes while no gradients are recorded, for integers, for
    the sides of rectified units and the places of maxima. They are those of the recorded pass in
    all passes. Functions with a backward pass of their own go on to be computed, whatever they
    detach inside, and their derivative is checked in the first pass that replays.

    Args:
        everything: Whether all that is cut from the graph is held. Otherwise it is what depends on
            a tensor that requires a gradient, and θ must require one in the recorded pass.

    Attributes:
        log: The functions of torch that were called, each with what it holds, if anything.
        calls: Custom functions that were called, with arguments and results.
        rounding: Largest rounding unit of the tensors that a gradient flowed through.
        differentiates: Whether the loss differentiates inside itself.
    """

    def __init__(self, everything: bool = False) -> None:
        self.everything = everything
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.log: list[tuple[Any, Held | None]] = []
        self.calls: list[tuple[Any, list[Cell], list[Cell]]] = []
        self.rounding = 0.0
        self.differentiates = False
        self._cells: dict[int | None, list[Cell]] = {}
        self._aliases: set[int] = set()

    def check_versions(self) -> None:
        """Raise where what is held was written over unseen.

        Raises:
            UnsupportedError: It was.
        """
        for cells in self._cells.values():
            if any(cell.version not in (None, _version(cell.tensor)) for cell in cells):
                raise UnsupportedError(
                    "the training loss writes, in place, over a tensor that it has detached "
                    f"before, so that a difference cannot hold its value. {REMEDY}"
                )

    def keep(self, tensor: Tensor, shared: Sequence[Tensor] = ()) -> Cell:
        """Hold a tensor.

        Args:
            tensor: The tensor.
            shared: Tensors with a graph that it may share memory with.
        """
        outside = Outside.of(tensor.detach())
        alias = outside.tensor
        cell = Cell(alias, _version(alias), outside.layers)
        place = place_of(alias)
        if place is not None:
            self._cells.setdefault(place, []).append(cell)
            if any(place_of(other) == place for other in shared):
                self._aliases.add(place)
        return cell

    def before_write(self, target: Tensor) -> None:
        """Save what is held of a tensor that somebody is about to write over.

        Args:
            target: The tensor.

        Raises:
            UnsupportedError: It shares the memory of one that a gradient flows through.
        """
        place = place_of(target)
        if place is None or place not in self._cells:
            return
        if place in self._aliases and not requires_gradient(target):
            raise hidden_write()
        self.save(target)
        self._aliases.discard(place)

    def save(self, target: Tensor) -> None:
        """Copy what is held of a tensor that somebody may write over.

        Args:
            target: The tensor.
        """
        for cell in self._cells.pop(place_of(target), ()):
            # In the passes that follow the copy itself is given away, and may be written over.
            cell.tensor, cell.version = cell.tensor.clone(), None
            self._cells.setdefault(place_of(cell.tensor) or 0, []).append(cell)

    def shares_memory(self, tensor: Tensor) -> bool:
        """Return whether a tensor may share the memory of one that a gradient flows through.

        Args:
            tensor: The tensor.
        """
        return place_of(tensor) in self._aliases


def hidden_write() -> UnsupportedError:
    """Return the error for a value that is changed behind the back of the graph."""
    return UnsupportedError(
        "the training loss writes, in place, over a tensor that a gradient flows through, and "
        f"hides it by .data, detach, no_grad or NumPy, so that a difference cannot follow. {REMEDY}"
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def place_of(tensor: Tensor) -> int | None:
    """Return the address of the memory of an ordinary tensor.

    Args:
        tensor: The tensor.
    """
    tensor = Outside.of(tensor).tensor
    if tensor.layout is not torch.strided:
        return None
    return tensor.untyped_storage().data_ptr() or None
