"""Whether a loss is a mean over examples, so that pieces of a batch can be put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatoolkit.errors import UnsupportedError
from metatoolkit.state import Tensors
from metatoolkit.stateless.example_marks import example_marks
from metatoolkit.stateless.micro_batches import examples
from metatoolkit.stateless.modes import in_mode

_LOOKED_AT = 8
Evaluate = Callable[[Any, int], tuple[Tensor, Tensors]]


def require_mean(
    kind: str,
    roots: Sequence[nn.Module],
    evaluate: Evaluate,
    buffers: Tensors,
    batch: tuple[Any, int, int],
) -> None:
    """Raise unless a loss is the mean over examples of what each of them has by itself.

    A few examples from all over the batch are evaluated together, and in two parts whose mean, by
    the numbers of their examples, must be the same. A loss that draws random numbers in training
    mode is compared in evaluation mode. Where a mask, labels or weights tell examples apart, some
    of both kinds are among them, and not alike in the two parts. It is a test on these examples: a
    loss that weighs examples by anything else passes it where these happen to weigh the same.

    Args:
        kind: Name of the loss.
        roots: The modules.
        evaluate: Evaluates the loss on a batch with a random key.
        buffers: Buffers before a pass.
        batch: The batch, the number of its examples, and how many of them a pass may see. Cost:
            at most 6 passes over as many, for each mask, labels or weights that tell apart.

    Raises:
        UnsupportedError: It is no such mean, or that cannot be seen.
    """
    for root in roots:
        for name, module in root.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise UnsupportedError(
                    f"micro_batch evaluates {kind} on pieces of a batch, but {name!r} is a "
                    f"{type(module).__name__} that normalizes by the statistics of a whole batch. "
                    "Use GroupNorm or LayerNorm, put it into evaluation mode, or leave "
                    "micro_batch out."
                )
    with torch.no_grad():
        if _compared(kind, evaluate, buffers, batch):
            return
        with in_mode(roots, False):
            if _compared(kind, evaluate, buffers, batch):
                return
    raise UnsupportedError(
        f"{kind} draws random numbers in evaluation mode, too, so that it cannot be seen whether "
        "it is a mean over examples, as micro_batch needs. Draw them in a module that does so in "
        "training mode alone, as Dropout, or leave micro_batch out."
    )


def _compared(kind: str, evaluate: Evaluate, buffers: Tensors, batch: tuple[Any, int, int]) -> bool:
    """Return whether the loss is deterministic and was found to be a mean."""
    return all(_is_mean(kind, evaluate, buffers, batch[0], rows) for rows in _selections(*batch))


def _is_mean(kind: str, evaluate: Evaluate, buffers: Tensors, tree: Any, rows: Tensor) -> bool:
    number = len(rows)
    some = examples(tree, 0, rows)
    whole, after = evaluate(some, 0)
    moved = [name for name, buffer in buffers.items() if not torch.equal(buffer, after[name])]
    if moved:
        raise UnsupportedError(
            f"micro_batch evaluates {kind} on pieces of a batch, but a pass changes the buffer "
            f"{moved[0]!r}, which would be changed by each piece. Leave micro_batch out, or put "
            "the module into evaluation mode."
        )
    if not torch.equal(whole, evaluate(some, 1)[0]):
        return False
    first = max(1, 2 * number // 3)
    parts = [evaluate(examples(tree, 0, part), 0)[0] for part in (rows[:first], rows[first:])]
    mean = (first * parts[0] + (number - first) * parts[1]) / number
    scale = max(float(part.abs()) for part in (whole, *parts))
    if not abs(float(whole - mean)) <= torch.finfo(whole.dtype).eps ** 0.5 * scale:
        raise UnsupportedError(
            f"{kind} is no mean over the examples of a batch, as micro_batch needs: of {number} "
            f"examples it is {float(whole):.6g}, but the mean of two parts of these, of {first} "
            f"and {number - first} examples, is {float(mean):.6g}. Let it return the mean over "
            "the leading dimension, each example with the same weight and by itself (a mask times "
            "the loss, and their number as a 0-d tensor of the batch), or leave micro_batch out."
        )
    return True


def _selections(tree: Any, count: int, size: int) -> Iterator[Tensor]:
    """Yield numbers of examples to look at; by each mark that tells them apart, lowest first."""
    number = min(count, max(2, min(size, _LOOKED_AT)))
    rows = torch.linspace(0, count - 1, number).round().long()
    marks = [mark.cpu() for mark in example_marks(tree, 0)]
    marks = [mark for mark in marks if not bool((mark == mark[0]).all())]
    for mark in marks:
        ends = torch.stack([mark.argmin(), mark.argmax()]).tolist()
        chosen = torch.tensor(list(dict.fromkeys([*ends, *rows.tolist()]))[:number])
        yield chosen[mark[chosen].argsort(stable=True)]
    if not marks:
        yield rows
