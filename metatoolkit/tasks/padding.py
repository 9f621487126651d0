"""Tasks of unequal sizes, filled up to one size and masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.tasks.task_source import told


def pad_tasks(
    tasks: Sequence[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return tasks of unequal sizes as one batch of tasks, with masks of what is real.

    Supports and queries are filled up with zeros to the largest, so that all tasks run side by
    side. The losses must leave the padding out, as
    :func:`metatoolkit.losses.masked_cross_entropy` and
    :func:`metatoolkit.losses.masked_squared_error` do, and no example may act on another, as in
    BatchNorm. Without padding, tasks of equal shapes run side by side and the others alone, which
    needs neither.

    Args:
        tasks: A tuple ``(support, query)`` for each task. Both are tuples of tensors with a leading
            dimension of examples, such as inputs and targets; it may differ from task to task.

    Returns:
        ``(support, query)``, each with the tensors of shape (tasks, examples, ...) and, at the end,
        a boolean mask of shape (tasks, examples), which is true where an example is real.

    Raises:
        DataError: There is no task, a support or query is no tuple of tensors, or it is empty.
        ShapeError: Tensors differ in their numbers of examples, or tasks in all other dimensions.

    Example:
        >>> few = (torch.ones(2, 3), torch.tensor([0, 1]))
        >>> many = (torch.ones(4, 3), torch.tensor([0, 1, 2, 0]))
        >>> (inputs, labels, mask), query = pad_tasks([(few, many), (many, few)])
        >>> inputs.shape, labels[0], mask[0]
        (torch.Size([2, 4, 3]), tensor([0, 1, 0, 0]), tensor([ True,  True, False, False]))
    """
    if not tasks:
        raise DataError("there are no tasks to pad; at least one is needed.")
    for number, task in enumerate(tasks):
        if not isinstance(task, tuple) or len(task) != 2:
            raise DataError(
                f"task {number} is a {type(task).__name__}; a tuple (support, query) is needed."
            )
    support, query = zip(*tasks, strict=True)
    return _padded("support", support), _padded("query", query)


def _padded(name: str, parts: Sequence[Any]) -> tuple[Tensor, ...]:
    sizes = [_size(f"the {name} of task {number}", part) for number, part in enumerate(parts)]
    for number, part in enumerate(parts):
        given, first = ([(t.shape[1:], t.dtype) for t in p] for p in (part, parts[0]))
        if given != first:
            raise ShapeError(
                f"the {name} of task {number} has tensors {told(part)} beside {told(parts[0])} "
                "of task 0; only the first dimension may differ."
            )
    columns = zip(*parts, strict=True)
    tensors = [torch.nn.utils.rnn.pad_sequence(list(c), batch_first=True) for c in columns]
    real = torch.tensor(sizes, device=tensors[0].device)
    places = torch.arange(max(sizes), device=tensors[0].device)
    return (*tensors, places < real[:, None])


def _size(what: str, part: Any) -> int:
    """Return the number of examples of a part of a task."""
    tensors = isinstance(part, tuple) and all(isinstance(t, Tensor) and t.dim() for t in part)
    if not tensors or not part:
        raise DataError(f"{what} is no tuple of tensors with a leading dimension of examples.")
    sizes = {len(tensor) for tensor in part}
    if len(sizes) > 1:
        raise ShapeError(f"{what} has tensors {told(part)}, which differ in their examples.")
    size = sizes.pop()
    if size == 0:
        raise DataError(f"{what} is empty; at least one example is needed.")
    return size
