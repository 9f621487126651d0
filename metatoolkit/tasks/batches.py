"""Batches from tensors in memory: endless for training, one pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.labels import check_labels
from metatoolkit.tasks.resumable import ResumableBatches

Transform = Callable[[Tensor, torch.Generator], Tensor]


class Batches(ResumableBatches[tuple[Tensor, ...]]):
    """An endless iterator over batches, whose place can be stored and found again.

    Every epoch has an order of its own. Order and transform draw only from the seed, the epoch
    and the number of the batch, never from the global random state, so that a restored iterator
    goes on bitwise as the stored one would have.

    Args:
        tensors: Tensors that share their first dimension, for instance images and labels.
        batch_size: Examples per batch.
        seed: Seed of the order and of the transform.
        shuffle: Whether each epoch is a new permutation; otherwise the order is kept.
        drop_last: Whether to leave out a smaller last batch of an epoch.
        transform: Called as ``transform(first, generator)`` with the part of the first tensor
            that belongs to the batch, for instance an :class:`ImageTransform`.
        device: Device to hold the tensors and yield batches on; ``None`` leaves them where they
            are.
        classes: Number of classes; if given, the last tensor must hold labels of these. Losses
            do not check labels that lie on a GPU, since that would wait for it at each step.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1, or an epoch would hold no batch.
        ShapeError: There is no tensor, or the lengths differ.
        LabelError: A label has no class.
        DataError: The labels are not int64.

    Example:
        >>> batches = Batches(torch.arange(4.0), torch.arange(4), batch_size=2, shuffle=False)
        >>> next(batches)
        (tensor([0., 1.]), tensor([0, 1]))
        >>> batches.epoch_length
        2
    """

    kept = ("length", "batch_size", "shuffle", "drop_last")
    counters = ("epoch", "next_batch")

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
        classes: int | None = None,
    ) -> None:
        self.length = _common_length(tensors)
        if classes is not None:
            check_labels("labels", tensors[-1], classes)
        _check_batch_size(batch_size)
        if self.length == 0:
            raise ConfigurationError("there are no examples; at least one is needed for a batch.")
        if drop_last and batch_size > self.length:
            raise ConfigurationError(
                f"batch_size is {batch_size}, but there are {self.length} examples; lower it, or "
                "pass drop_last=False."
            )
        self.tensors = tuple(t if device is None else t.to(device) for t in tensors)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.epoch = 0
        self.next_batch = 0
        self._order: Tensor | None = None

    @property
    def epoch_length(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(self.length, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    @override
    def __next__(self) -> tuple[Tensor, ...]:
        """Return the next batch, one tensor for each that was given."""
        if self.next_batch >= self.epoch_length:
            self.epoch += 1
            self.next_batch = 0
            self._order = None
        start = self.next_batch * self.batch_size
        stop = min(start + self.batch_size, self.length)
        if self.shuffle:
            if self._order is None:
                self._order = self._permutation()
            batch = [tensor[self._order[start:stop]] for tensor in self.tensors]
        else:
            batch = [tensor[start:stop].clone() for tensor in self.tensors]
        if self.transform is not None:
            generator = _generator(self.seed, self.epoch, Stream.BATCH_TRANSFORMS + self.next_batch)
            batch[0] = self.transform(batch[0], generator)
        self.next_batch += 1
        return tuple(batch)

    def _permutation(self) -> Tensor:
        order = torch.randperm(
            self.length, generator=_generator(self.seed, self.epoch, Stream.EPOCH_ORDER)
        )
        return order.to(self.tensors[0].device)

    @override
    def _moved(self) -> None:
        self._order = None


def evaluation_batches(
    *tensors: Tensor,
    batch_size: int = 512,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield every example once and in order; the last batch may be smaller.

    Args:
        tensors: Tensors that share their first dimension.
        batch_size: Largest number of examples per batch.
        transform: As in :class:`Batches`, with a fixed seed.
        device: Device to yield batches on; ``None`` leaves them where they are.

    Returns:
        An iterator over tuples, one tensor for each that was given.

    Raises:
        ConfigurationError: ``batch_size`` is less than 1.
        ShapeError: There is no tensor, or the lengths differ.
    """
    length = _common_length(tensors)
    _check_batch_size(batch_size)

    def iterate() -> Iterator[tuple[Tensor, ...]]:
        generator = _generator(0, 0, Stream.BATCH_TRANSFORMS)
        for start in range(0, length, batch_size):
            batch = [tensor[start : start + batch_size] for tensor in tensors]
            if device is not None:
                batch = [tensor.to(device, non_blocking=True) for tensor in batch]
            if transform is not None:
                batch[0] = transform(batch[0], generator)
            yield tuple(batch)

    return iterate()


def _common_length(tensors: tuple[Tensor, ...]) -> int:
    if not tensors:
        raise ShapeError("no tensor was given; at least one is needed.")
    if any(tensor.dim() == 0 for tensor in tensors):
        raise ShapeError("a 0-d tensor was given; the first dimension counts the examples.")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ShapeError(
            f"the tensors hold {', '.join(map(str, lengths))} examples; the first dimensions must "
            "be equal."
        )
    return lengths[0]


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size!r}; an integer from 1 on is needed.")


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(fold_in(seed, epoch, stream))
