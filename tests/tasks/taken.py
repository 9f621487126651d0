"""Episodes that are taken and compared."""

from __future__ import annotations

import torch
from torch import Tensor

from metatoolkit.tasks import (
    Episode,
    EpisodeBatches,
)


def raw(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def take(batches: EpisodeBatches, count: int) -> list[Episode]:
    return [next(batches) for _ in range(count)]


def same(first: list[Episode], second: list[Episode]) -> bool:
    return all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )
