"""Base of batches that are taken in epochs, each with an order of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.resumable import Item, ResumableBatches


class EpochBatches(ResumableBatches[Item]):
    """An endless iterator over batches of places in an epoch; a subclass makes items of them.

    It takes the places of a batch from :meth:`next_places`, and then counts ``next_batch`` up.

    Args:
        length: Number of examples.
        batch_size: Examples per batch.
        seed: Seed of the order.
        shuffle: Whether each epoch is a new permutation; otherwise the order is kept.
        drop_last: Whether to leave out a smaller last batch of an epoch.
        device: Where places shall be; ``None`` for the CPU.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1, or an epoch would hold no batch.
    """

    kept = ("length", "batch_size", "shuffle", "drop_last")
    counters = ("epoch", "next_batch")

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        device: torch.device | None = None,
    ) -> None:
        check_batch_size(batch_size)
        if length == 0:
            raise ConfigurationError("there are no examples; at least one is needed for a batch.")
        if drop_last and batch_size > length:
            raise ConfigurationError(
                f"batch_size is {batch_size}, but there are {length} examples; lower it, or "
                "pass drop_last=False."
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.next_batch = 0
        self._device = device
        self._order: Tensor | None = None

    @property
    def epoch_length(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(self.length, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def next_places(self) -> Tensor:
        """Return the places of the examples of the next batch, and begin its epoch if it is new."""
        if self.next_batch >= self.epoch_length:
            self.epoch += 1
            self.next_batch = 0
            self._order = None
        if self._order is None:
            self._order = self._places_of_epoch().to(self._device)
        start = self.next_batch * self.batch_size
        return self._order[start : start + self.batch_size]

    def _places_of_epoch(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.length)
        generator = epoch_generator(self.seed, self.epoch, Stream.EPOCH_ORDER)
        return torch.randperm(self.length, generator=generator)

    @override
    def _moved(self) -> None:
        self._order = None


def epoch_generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """Return a generator for what is drawn in an epoch.

    Args:
        seed: Seed of the batches.
        epoch: Number of the epoch.
        stream: What is drawn.
    """
    return torch.Generator().manual_seed(fold_in(seed, epoch, stream))


def check_batch_size(batch_size: int) -> None:
    """Raise unless a number of examples per batch is one.

    Args:
        batch_size: What was given.

    Raises:
        ConfigurationError: It is no integer from 1 on.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size!r}; an integer from 1 on is needed.")
