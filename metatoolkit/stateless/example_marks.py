"""What of a batch may weigh its examples: masks, labels to be ignored, weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metatoolkit.state import tree_map
from metatoolkit.stateless.piece_weights import Weighing
from metatoolkit.stateless.traced_flags import holds, is_traced

Signature = tuple[bool, ...]


def example_marks(batch: Any, dim: int) -> list[Tensor]:
    """Return numbers of the examples by which a loss may weigh them, masks first.

    Args:
        batch: Any pytree of tensors.
        dim: Dimension of examples.

    Returns:
        A tensor with the dimensions up to that of examples for each mark: how many booleans are
        true, how many integers below zero, and all else that is one number an example.
    """
    masks: list[Tensor] = []
    numbers: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.dim() <= dim or not tensor.numel():
            return tensor
        flat = tensor.flatten(dim + 1) if tensor.dim() > dim + 1 else tensor.unsqueeze(-1)
        if tensor.dtype == torch.bool:
            masks.append(flat.sum(-1))
            return tensor
        if not tensor.is_floating_point() and tensor.dtype.is_signed and not tensor.is_complex():
            masks.append((flat < 0).sum(-1))
        if flat.shape[-1] == 1 and not tensor.is_complex():
            numbers.append(flat.detach().squeeze(-1))
        return tensor

    with torch.no_grad():
        tree_map(note, batch, on_object=lambda leaf: leaf)
    return masks + numbers


class SeenMarks:
    """Which marks were the same for all examples of a batch, in the batches that were looked at.

    Args:
        ways: Ways in which the loss may be a mean over examples.

    Attributes:
        ways: Those that hold for all batches that were looked at.
    """

    def __init__(self, ways: list[Weighing]) -> None:
        self.ways = ways
        self._seen: set[Signature] = set()

    @property
    def weighing(self) -> Weighing:
        """The way that is taken."""
        return self.ways[0]

    def add(self, marks: list[Tensor], ways: list[Weighing]) -> None:
        """Note the marks of a batch.

        Args:
            marks: What :func:`example_marks` returned.
            ways: Those of the ways that hold for it, at least one.
        """
        self.ways = ways
        self._seen.update(_signatures(marks))

    def has(self, marks: list[Tensor]) -> bool:
        """Return whether a batch, or each of several, is like one that was looked at.

        While a call is traced that is taken to be so, and looked at in each call of the program.

        Args:
            marks: What :func:`example_marks` returned.
        """
        if not is_traced():
            return self._seen.issuperset(_signatures(marks))
        if not self._seen or not marks:
            return bool(self._seen)
        known = torch.tensor(sorted(self._seen), device=marks[0].device)
        own = _equal(marks)
        return not holds(~(own.unsqueeze(-2) == known).all(-1).any(-1).all())


def _equal(marks: list[Tensor]) -> Tensor:
    """Return whether each mark is the same for all examples, in the last dimension."""
    return torch.stack([(mark == mark[..., :1]).all(-1) for mark in marks], -1)


def _signatures(marks: list[Tensor]) -> list[Signature]:
    if not marks:
        return [()]
    return list(map(tuple, _equal(marks).reshape(-1, len(marks)).tolist()))
