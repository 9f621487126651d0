"""The losses of a problem that are taken on pieces of a batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from metatoolkit.errors import UnsupportedError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import Tensors
from metatoolkit.stateless.example_marks import SeenMarks, example_marks
from metatoolkit.stateless.example_means import require_mean
from metatoolkit.stateless.micro_batches import Pieces, checked_sizes, count_examples, examples
from metatoolkit.stateless.modes import in_modes, modes_of

Once = Callable[[Tensors, Tensors, Tensors, Any, int], tuple[Tensor, Tensors]]


class UnseenTasksError(UnsupportedError):
    """Tasks side by side need a look at each by itself first."""


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
        # Losses that were seen to be means over examples, by name, identity and modes.
        self._means: dict[Any, tuple[Any, SeenMarks]] = {}

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
            once: Evaluates the loss by one pass.
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
        known = (kind, id(function), tuple(training for _, training in modes))
        if self._checks:
            # The loss is kept, so that no other one gets its identity.
            _, seen = self._means.setdefault(known, (function, SeenMarks()))
            marks = example_marks(batch, dim)
            if not seen.has(marks):
                if dim:
                    raise UnseenTasksError(
                        f"micro_batch takes {kind} on pieces of tasks side by side, some of which "
                        "have other masks, labels or weights than those that were looked at one "
                        "by one. Use batching='loop' or 'auto'."
                    )
                require_mean(
                    kind,
                    self._roots,
                    lambda some, key: once(parameters, meta, buffers, some, key),
                    buffers,
                    (batch, count, size),
                )
                seen.add(marks)
        edges = [*range(0, count, size), count]

        def evaluate(number: int, tensors: Sequence[Tensor]) -> Tensor:
            remaining = iter(tensors)
            at, under = ({n: next(remaining) for n in named} for named in (parameters, meta))
            piece = examples(batch, dim, slice(edges[number], edges[number + 1]))
            # As in the first evaluation, where this is one of a backward pass.
            with in_modes(modes):
                return once(at, under, buffers, piece, fold_in(key, Stream.PIECE, number))[0]

        weights = [(last - first) / count for first, last in itertools.pairwise(edges)]
        value = Pieces(evaluate, weights, watch).mean([*parameters.values(), *meta.values()])
        return value, buffers
