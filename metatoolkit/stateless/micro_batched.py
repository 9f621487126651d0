"""The losses of a problem that are taken on pieces of a batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.errors import UnsupportedError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import Tensors
from metatoolkit.stateless.example_marks import SeenMarks, example_marks
from metatoolkit.stateless.example_means import require_mean
from metatoolkit.stateless.exchange import carry
from metatoolkit.stateless.micro_batches import Pieces, checked_sizes, count_examples
from metatoolkit.stateless.modes import in_modes, modes_of
from metatoolkit.stateless.piece_weights import Weighing, masks

Once = Callable[..., tuple[Tensor, Tensors]]


class UnseenTasksError(UnsupportedError):
    """Tasks side by side need a look at each by itself first."""


def moved(tensor: Tensor) -> Tensor:
    """Return other values of a parameter, which are near and differ from each other.

    Args:
        tensor: The parameter.
    """
    places = torch.arange(1, tensor.numel() + 1, device=tensor.device)
    return tensor + 0.05 * places.sin().reshape(tensor.shape).to(tensor.dtype)


def times(loss: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return a multiple of a loss, which has its type and can be differentiated as it is.

    Args:
        loss: Loss that a problem evaluated.
        weight: A scalar; ``None`` for the loss itself.
    """
    if weight is None:
        return loss
    total = weight.to(loss.dtype) * loss
    carry(loss, total)
    return total


class MicroBatched:
    """Evaluates losses over large batches as means over pieces of these.

    Args:
        micro_batch: Largest number of examples in a pass, for both losses or by their names.
        roots: The modules.

    Attributes:
        sizes: The numbers by the names of the losses.

    Raises:
        ConfigurationError: They are no such numbers.
    """

    def __init__(
        self, micro_batch: int | Mapping[str, int] | None, roots: Sequence[nn.Module]
    ) -> None:
        self.sizes = checked_sizes(micro_batch)
        self._roots = roots
        self._checks = True
        # Losses that were seen to be means over examples, by name, modes, masks and identity.
        self._means: dict[Any, dict[int, tuple[Any, SeenMarks]]] = {}

    @property
    def weighings(self) -> tuple[Any, ...]:
        """How pieces of batches are weighted in other ways than by their examples, by the loss."""
        found = ((k, i, m.weighing) for k, by in self._means.items() for i, (_, m) in by.items())
        return tuple(one for one in found if one[-1] != Weighing())

    def unchecked(self) -> MicroBatched:
        """Return one that does not look at losses, which others have looked at."""
        other = copy.copy(self)
        other._checks = False
        return other

    def evaluate(
        self,
        once: Once,
        loss: tuple[str, Any],
        point: tuple[Tensors, Tensors, Tensors, Any, int],
        dim: int,
        watch: Callable[[Tensor, Sequence[Tensor]], None],
    ) -> tuple[Tensor, Tensors]:
        """Return a loss and the buffers, which stay as they are where the batch is cut.

        Args:
            once: Evaluates the loss by one pass, times a ``weight`` where one is given.
            loss: Name and function of the loss.
            point: Parameters, meta-parameters, buffers, batch and random key.
            dim: Dimension of examples in the batch.
            watch: Called with a loss and tensors before second derivatives are taken in these.

        Raises:
            DataError: The batch cannot be cut into pieces.
            UnsupportedError: The loss is no mean over examples, or that is unknown of tasks side by
                side whose masks are unlike those that ran by themselves.
        """
        parameters, meta, buffers, batch, key = point
        kind, function = loss
        size, count = self.sizes[kind], count_examples(batch, dim)
        if count <= size:
            return once(*point)
        modes = modes_of(self._roots)
        ways = [Weighing(), *map(Weighing, range(len(masks(batch, dim))))]
        known = (kind, tuple(training for _, training in modes), len(ways))
        by_loss = self._means.setdefault(known, {})
        if self._checks:
            # The loss is kept, so that no other one gets its identity.
            _, seen = by_loss.setdefault(id(function), (function, SeenMarks(ways)))
            marks = example_marks(batch, dim)
            if not seen.has(marks):
                if dim:
                    raise UnseenTasksError(
                        f"micro_batch takes {kind} on pieces of tasks side by side, some of which "
                        "have other masks, labels or weights than those that were looked at one "
                        "by one. Use batching='loop' or 'auto'."
                    )

                def look(some: Any, key: int, nearby: bool) -> tuple[Tensor, Tensors]:
                    at = {n: moved(t) for n, t in parameters.items()} if nearby else parameters
                    return once(at, meta, buffers, some, key)

                whole = batch, count, size
                found, general = require_mean(kind, self._roots, look, buffers, whole, seen.ways)
                if general:
                    seen.add(marks, found)
                weighing = found[0]
            else:
                weighing = seen.weighing
        else:
            # Which stands for the loss that was looked at.
            former = [seen.weighing for _, seen in by_loss.values()]
            weighing = former[-1] if former else Weighing()
        edges = [*range(0, count, size), count]

        def evaluate(number: int, tensors: Sequence[Tensor]) -> Tensor:
            remaining = iter(tensors)
            at, under = ({n: next(remaining) for n in named} for named in (parameters, meta))
            rows = slice(edges[number], edges[number + 1])
            piece, weight = weighing.piece(batch, dim, rows)
            own = fold_in(key, Stream.PIECE, number)
            kept = weight if isinstance(weight, Tensor) else None
            # As in the first evaluation, where this is one of a backward pass.
            with in_modes(modes):
                return once(at, under, buffers, piece, own, weight=kept)[0]

        weights = [
            1.0 if weighing.mask is not None else (last - first) / count
            for first, last in itertools.pairwise(edges)
        ]
        value = Pieces(evaluate, weights, watch).mean([*parameters.values(), *meta.values()])
        return value, buffers
