"""What a piece of a batch counts: its share of the examples, or of those that a mask keeps."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from metatoolkit.state import tree_map
from metatoolkit.stateless.micro_batches import count_examples, examples


def masks(batch: Any, dim: int) -> list[Tensor]:
    """Return the boolean tensors of a batch that hold one or more values for each example.

    Args:
        batch: Any pytree of tensors.
        dim: Dimension of examples.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if _is_mask(tensor, dim):
            found.append(tensor)
        return tensor

    tree_map(note, batch, on_object=lambda leaf: leaf)
    return found


def _is_mask(tensor: Tensor, dim: int) -> bool:
    return tensor.dtype == torch.bool and tensor.dim() > dim


@dataclasses.dataclass(frozen=True)
class Weighing:
    """How the loss over a batch is put together from those over its pieces.

    Attributes:
        mask: Number of the mask whose true values are counted; ``None`` counts examples.
    """

    mask: int | None = None

    def piece(self, batch: Any, dim: int, rows: slice) -> tuple[Any, float | Tensor]:
        """Return a piece of a batch, and its weight.

        A piece of which the mask keeps nothing has weight zero, and would have no mean: there the
        mask keeps all, so that its loss is a number.

        Args:
            batch: The batch.
            dim: Dimension of examples.
            rows: The examples.

        Returns:
            The piece, and its weight: a number, or a tensor of the dimensions before that of
            examples. Weights of all pieces add up to 1.
        """
        piece = examples(batch, dim, rows)
        if self.mask is None:
            return piece, (rows.stop - rows.start) / count_examples(batch, dim)
        kept, of = (masks(tree, dim)[self.mask].flatten(dim).sum(-1) for tree in (piece, batch))
        return filled(piece, dim, self.mask), kept.double() / of.double()

    def is_alike(self, batch: Any) -> bool:
        """Return whether the mask keeps as much of each example.

        Args:
            batch: A batch, whose leading dimension is that of examples.
        """
        counts = masks(batch, 0)[self.mask or 0].unsqueeze(-1).flatten(1).sum(-1)
        return bool((counts == counts[0]).all())


def filled(batch: Any, dim: int, only: int | None = None) -> Any:
    """Return a batch in which a mask that keeps nothing keeps all.

    Args:
        batch: The batch.
        dim: Dimension of examples; those before it have masks of their own.
        only: Number of the mask that is filled; ``None`` for each.
    """
    numbers = itertools.count()

    def fill(tensor: Tensor) -> Tensor:
        if not _is_mask(tensor, dim) or only not in (None, next(numbers)):
            return tensor
        inner = tuple(range(dim, tensor.dim()))
        return tensor | ~tensor.any(inner, keepdim=True)

    return tree_map(fill, batch)
