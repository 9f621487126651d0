"""Batches of encoded text, each padded to its own longest row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.tasks.batches import evaluation_batches
from metatoolkit.tasks.epochs import EpochBatches
from metatoolkit.tasks.languages.encoding import TokenDataset


class TokenBatches(EpochBatches[dict[str, Tensor]]):
    """An endless iterator over batches of encoded text, whose place can be stored and found again.

    A batch is a dictionary with ``input_ids`` and ``attention_mask`` of shape (batch, tokens) and
    ``labels`` of the same shape, or (batch,) for documents; all are int64. ``tokens`` is the length
    of the longest row of the batch.

    Args:
        dataset: The encoded examples.
        batch_size: Rows per batch.
        seed: Seed of the order; each epoch has one of its own.
        device: Device to hold the rows and yield batches on; ``None`` leaves them where they are.
        shuffle: Whether each epoch is a new permutation.
        drop_last: Whether to leave out a smaller last batch of an epoch.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1, or larger than the data set.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self._rows = _Rows(dataset, device)
        super().__init__(len(dataset), batch_size, seed, shuffle, drop_last)

    @override
    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        batch = self._rows.take(self.next_places())
        self.next_batch += 1
        return batch


def evaluation_token_batches(
    dataset: TokenDataset, batch_size: int = 64, device: torch.device | str | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield every row once and in order; the last batch may be smaller.

    Args:
        dataset: The encoded examples.
        batch_size: Largest number of rows per batch.
        device: Device to yield batches on; ``None`` leaves them where they are.

    Returns:
        An iterator over batches as in :class:`TokenBatches`.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
    """
    rows = _Rows(dataset, device)
    places = evaluation_batches(torch.arange(len(dataset)), batch_size=batch_size)
    return (rows.take(place) for (place,) in places)


class _Rows:
    """The rows of a data set on a device; their lengths stay at hand on the CPU."""

    def __init__(self, dataset: TokenDataset, device: torch.device | str | None) -> None:
        self.lengths = dataset.attention_mask.sum(dim=1).cpu()
        parts = {
            "input_ids": dataset.input_ids,
            "attention_mask": dataset.attention_mask,
            "labels": dataset.labels,
        }
        self.parts = {name: t if device is None else t.to(device) for name, t in parts.items()}

    def take(self, places: Tensor) -> dict[str, Tensor]:
        length = int(self.lengths[places].max())
        rows = {name: part[places.to(part.device)] for name, part in self.parts.items()}
        return {n: part[:, :length] if part.dim() == 2 else part for n, part in rows.items()}
