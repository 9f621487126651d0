"""Batches from tensors in memory: endless for training, one pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ShapeError
from metatoolkit.randomness import Stream
from metatoolkit.tasks.epochs import EpochBatches, check_batch_size, epoch_generator
from metatoolkit.tasks.labels import check_labels

Transform = Callable[[Tensor, torch.Generator], Tensor]


class Batches(EpochBatches[tuple[Tensor, ...]]):
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
        length = _common_length(tensors)
        if classes is not None:
            check_labels("labels", tensors[-1], classes)
        self.tensors = tuple(t if device is None else t.to(device) for t in tensors)
        super().__init__(length, batch_size, seed, shuffle, drop_last, self.tensors[0].device)
        self.transform = transform

    @override
    def __next__(self) -> tuple[Tensor, ...]:
        """Return the next batch, one tensor for each that was given."""
        places = self.next_places()
        batch = [tensor[places] for tensor in self.tensors]
        if self.transform is not None:
            generator = epoch_generator(
                self.seed, self.epoch, Stream.BATCH_TRANSFORMS + self.next_batch
            )
            batch[0] = self.transform(batch[0], generator)
        self.next_batch += 1
        return tuple(batch)


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
    check_batch_size(batch_size)

    def iterate() -> Iterator[tuple[Tensor, ...]]:
        generator = epoch_generator(0, 0, Stream.BATCH_TRANSFORMS)
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
