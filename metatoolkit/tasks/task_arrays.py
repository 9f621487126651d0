"""Arrays that tasks are made of: read and checked, and whose turn it is to be a task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, ShapeError, brief
from metatoolkit.randomness import Stream, fold_in


def read_values(name: str, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return finite real numbers as a tensor of a floating-point type, on the CPU.

    Args:
        name: What they are called in messages.
        values: An array, a tensor or nested lists, with a leading dimension of rows.
        dtype: Type of the tensor; ``None`` takes torch's default.

    Returns:
        A copy.

    Raises:
        ConfigurationError: ``dtype`` is not of floating point.
        DataError: They are no real numbers, one of them is NaN or infinite, or there are none.
        ShapeError: They have no dimension.
    """
    try:
        if isinstance(values, Tensor):
            found = values.detach().cpu()
        else:
            # A copy, since tensors cannot tell that memory is read-only.
            found = torch.from_numpy(np.array(values))
        if found.is_complex():
            raise TypeError("they are complex")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are no array of real numbers ({brief(error)}).") from error
    if found.dim() == 0:
        raise ShapeError(f"{name} are a single number; a leading dimension of rows is needed.")
    if found.numel() == 0:
        raise DataError(f"{name} are empty, of shape {tuple(found.shape)}.")
    kind = torch.get_default_dtype() if dtype is None else dtype
    if not kind.is_floating_point:
        raise ConfigurationError(f"dtype is {kind}; one of floating point is needed.")
    converted = found.to(kind, copy=True)
    wrong = (~converted.isfinite()).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        raise DataError(
            f"{name} hold {len(wrong)} that are not finite in {str(kind).removeprefix('torch.')}, "
            f"first {float(found[tuple(place)])} at {place}; leave such rows out, or fill them in."
        )
    return converted


def draw_rows(count: int, shots: int, queries: int, key: int) -> tuple[Tensor, Tensor]:
    """Return the rows of a task's support and query, drawn without replacement.

    Args:
        count: Number of rows.
        shots: Rows of the support.
        queries: Rows of the query.
        key: Random key of the task.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(key))
    return order[:shots], order[shots : shots + queries]


def whose_turn(seed: int, number: int, count: int) -> int:
    """Return which member of a set task ``number`` is of, so that all take turns.

    Each ``count`` tasks from a multiple of it on are of each member once, in random order.

    Args:
        seed: Seed of the tasks.
        number: Number of the task.
        count: Number of members.
    """
    turn, place = divmod(number, count)
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.TASK_TURNS, turn))
    return int(torch.randperm(count, generator=generator)[place])
