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
from metatoolkit.stateless.micro_batches import count_examples, examples
from metatoolkit.stateless.modes import in_mode
from metatoolkit.stateless.piece_weights import Weighing, filled

_LOOKED_AT = 8
_APART = 30.0
"""Parts whose losses differ by fewer tolerances do not tell how they are weighted."""
Evaluate = Callable[[Any, int, bool], tuple[Tensor, Tensors]]


def require_mean(
    kind: str,
    roots: Sequence[nn.Module],
    evaluate: Evaluate,
    buffers: Tensors,
    batch: tuple[Any, int, int],
    weighings: Sequence[Weighing],
) -> tuple[list[Weighing], bool]:
    """Return the ways in which a loss is a mean over examples of what each of them has by itself.

    A few examples from all over the batch are evaluated together, and in two parts whose mean, by
    the numbers of their examples or of those that a mask keeps, must be the same. A loss that draws
    random numbers in training mode is compared in evaluation mode. Where a mask, labels or weights
    tell examples apart, some of both kinds are among them, and not alike in the two parts; where
    these have nearly the same loss, as under a last layer of zeros, other parameters tell. It is a
    test on these examples: a loss that weighs examples by anything else passes it where these
    happen to weigh the same.

    Args:
        kind: Name of the loss.
        roots: The modules.
        evaluate: Evaluates the loss on a batch with a random key, at parameters nearby if wanted.
        buffers: Buffers before a pass.
        batch: The batch, the number of its examples, and how many of them a pass may see. Cost:
            at most 7 + 4 passes over as many for each way, three examples at least, and that for
            each mask, labels or weights that tell apart.
        weighings: Ways to look at, the first of which is taken where several hold.

    Returns:
        Those that hold, at least one, and whether that may be told of other batches: not where a
        mask keeps a single example, over which any loss is a mean.

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
        found = _compared(kind, evaluate, buffers, batch, weighings)
        if found is None:
            with in_mode(roots, False):
                found = _compared(kind, evaluate, buffers, batch, weighings)
        if found is not None:
            return found
    raise UnsupportedError(
        f"{kind} draws random numbers in evaluation mode, too, so that it cannot be seen whether "
        "it is a mean over examples, as micro_batch needs. Draw them in a module that does so in "
        "training mode alone, as Dropout, or leave micro_batch out."
    )


def _compared(
    kind: str,
    evaluate: Evaluate,
    buffers: Tensors,
    batch: tuple[Any, int, int],
    weighings: Sequence[Weighing],
) -> tuple[list[Weighing], bool] | None:
    """Return the ways in which a loss is a mean, or ``None`` where it is not deterministic."""
    holding, looked_at = list(weighings), []
    for rows, alike in _selections(*batch):
        some = filled(examples(batch[0], 0, rows), 0)
        whole, after = evaluate(some, 0, False)
        moved = [name for name, buffer in buffers.items() if not torch.equal(buffer, after[name])]
        if moved:
            raise UnsupportedError(
                f"micro_batch evaluates {kind} on pieces of a batch, but a pass changes the buffer "
                f"{moved[0]!r}, which would be changed by each piece. Leave micro_batch out, or "
                "put the module into evaluation mode."
            )
        if not torch.equal(whole, evaluate(some, 1, False)[0]) and not whole.isnan():
            return None
        holding, told = _holding(kind, evaluate, some, len(rows), holding)
        if not told and not alike:
            holding, _ = _holding(kind, evaluate, some, len(rows), holding, nearby=True)
        looked_at.append(some)
    way = holding[0]
    alike = way.mask is None or way.is_alike(batch[0])
    return holding, alike or any(_tells(way, some) for some in looked_at)


def _tells(way: Weighing, some: Any) -> bool:
    """Return whether a mask leaves examples out, and both parts have some that it keeps."""
    parts = _parts(way, some, count_examples(some, 0))
    return not way.is_alike(some) and all(bool(weight != 0) for _, weight in parts)


def _parts(weighing: Weighing, some: Any, number: int) -> list[tuple[Any, float | Tensor]]:
    first = max(1, min((2 * number + 2) // 3, number - 1))
    return [weighing.piece(some, 0, rows) for rows in (slice(0, first), slice(first, number))]


def _holding(
    kind: str,
    evaluate: Evaluate,
    some: Any,
    number: int,
    weighings: list[Weighing],
    nearby: bool = False,
) -> tuple[list[Weighing], bool]:
    """Return the ways that hold for some examples, and whether other ones would have shown."""
    whole = evaluate(some, 0, nearby)[0]
    holding, means, told = [], [], False
    for weighing in weighings:
        pairs = _parts(weighing, some, number)
        parts = [evaluate(piece, 0, nearby)[0] for piece, _ in pairs]
        means.append(sum(float(w) * float(p) for p, (_, w) in zip(parts, pairs, strict=True)))
        scale = max(float(part.abs()) for part in (whole, *parts))
        allowed = torch.finfo(whole.dtype).eps ** 0.5 * scale
        told = told or abs(float(parts[0] - parts[1])) > _APART * allowed
        if abs(float(whole) - means[-1]) <= allowed:
            holding.append(weighing)
    if not holding:
        raise UnsupportedError(
            f"{kind} is no mean over the examples of a batch, as micro_batch needs: of {number} "
            f"examples it is {float(whole):.6g}, but the mean of two parts of these "
            f"is {' or '.join(f'{mean:.6g}' for mean in means)}. "
            "Let it return the mean over the leading dimension, each example with the same weight "
            "and by itself, or that over the examples that a boolean mask of the batch keeps, or "
            "leave micro_batch out."
        )
    return holding, told


def _selections(tree: Any, count: int, size: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield numbers of examples to look at, and whether all marks are alike.

    By each mark that tells them apart, they are the highest one, and then all from the lowest on:
    two parts differ in their shares of what a mask keeps, and both have some.
    """
    number = min(count, max(3, min(size, _LOOKED_AT)))
    rows = torch.linspace(0, count - 1, number).round().long()
    marks = [mark.cpu() for mark in example_marks(tree, 0)]
    marks = [mark for mark in marks if not bool((mark == mark[0]).all())]
    for mark in marks:
        order = mark.argsort(stable=True).tolist()
        ends = [order[-1], order[0], order[-2]]
        chosen = torch.tensor(list(dict.fromkeys([*ends, *rows.tolist()]))[:number])
        yield chosen[mark[chosen].argsort(stable=True)].roll(1), False
    if not marks:
        yield rows, True
