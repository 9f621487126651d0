"""A loss over a batch as the mean over pieces of it, of which one at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.state import describe, tree_map
from metatoolkit.stateless.exchange import carry, within
from metatoolkit.stateless.loss_values import refuse_sparse

LOSSES = ("train_loss", "valid_loss")
Gradients = list[Tensor | None]


def checked_sizes(micro_batch: int | Mapping[str, int] | None) -> dict[str, int]:
    """Return the largest number of examples in a pass, by the name of the loss.

    Args:
        micro_batch: A number for both losses, a mapping from names of losses, or ``None``.

    Raises:
        ConfigurationError: A number is below 1 or none, or there is no such loss.
    """
    if micro_batch is None:
        return {}
    sizes = micro_batch if isinstance(micro_batch, Mapping) else dict.fromkeys(LOSSES, micro_batch)
    for name, size in sizes.items():
        if name not in LOSSES or not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigurationError(
                f"micro_batch is {micro_batch!r}; accepted: the number of examples that a pass may "
                "hold, at least 1, for both losses, or a mapping from 'train_loss' and "
                "'valid_loss' to such numbers, or None for whole batches."
            )
    return dict(sizes)


def count_examples(batch: Any, dim: int) -> int:
    """Return the number of examples of a batch.

    Args:
        batch: Any pytree of tensors; numbers (0-d) and ``None`` belong to all examples.
        dim: Dimension of examples.

    Raises:
        ShapeError: Tensors have other numbers of examples.
        DataError: There is no tensor, or something that cannot be cut into pieces.
    """
    counts: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.dim() > dim:
            counts.setdefault(tensor.shape[dim], tensor)
        return tensor

    def other(leaf: Any) -> Any:
        if leaf is not None:
            raise DataError(
                f"the batch holds a {type(leaf).__name__}, and micro_batch cannot tell whether "
                "it belongs to one example or to all. Make a tensor of it whose leading dimension "
                "is that of the examples, or keep it in the loss."
            )
        return leaf

    tree_map(note, batch, on_object=other)
    if len(counts) != 1:
        found = "no tensor" if not counts else " and ".join(map(describe, counts.values()))
        raise ShapeError(
            f"micro_batch cuts a batch into pieces by its examples, but the batch holds {found}; "
            "all tensors need the same leading dimension. Keep what belongs to no example, such "
            "as weights of classes, in a buffer of the model or in the loss."
        )
    return next(iter(counts))


def examples(batch: Any, dim: int, rows: slice | Tensor) -> Any:
    """Return some examples of a batch.

    Args:
        batch: The batch.
        dim: Dimension of examples.
        rows: A slice, or their numbers.
    """

    def some(tensor: Tensor) -> Tensor:
        if tensor.dim() <= dim:
            return tensor
        if isinstance(rows, slice):
            return tensor.narrow(dim, rows.start, rows.stop - rows.start)
        return tensor.index_select(dim, rows.to(tensor.device))

    return tree_map(some, batch)


class Pieces:
    """The mean of a loss over pieces of a batch, as a function of tensors.

    Values and first derivatives are taken piece by piece, at once, and only the gradients are
    kept. A derivative of these evaluates each piece again with a graph of its own. So neither ever
    holds the graph of more than one piece. Further derivatives, and those in forward mode, hold
    the graphs of all pieces.

    Args:
        evaluate: ``(number of the piece, tensors) -> loss``, a scalar.
        weights: Share of the examples that each piece has.
        watch: Called with a loss, and the tensors it is differentiated in twice, before that.
    """

    def __init__(
        self,
        evaluate: Callable[[int, Sequence[Tensor]], Tensor],
        weights: Sequence[float],
        watch: Callable[[Tensor, Sequence[Tensor]], None],
    ) -> None:
        self._evaluate, self._weights, self._watch = evaluate, weights, watch

    def mean(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the mean loss, a scalar that can be differentiated in the tensors.

        Args:
            tensors: Tensors that the loss is a function of. Cost: the passes over the pieces, and
                their backward passes where gradients are recorded.
        """
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if not recorded or _in_forward_mode(tensors):
            return self.graph(tensors)
        gradients: Gradients = [None] * len(tensors)
        total: Tensor | None = None
        for number, weight in enumerate(self._weights):
            leaves = _leaves(tensors, [tensor.requires_grad for tensor in tensors])
            loss = self._evaluate(number, leaves)
            part = weight * loss.detach()
            total = part if total is None else total + part
            if loss.requires_grad:
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                with within(loss):
                    found = torch.autograd.grad(loss, wanted, allow_unused=True)
                refuse_sparse(found)
                _add(gradients, leaves, wanted, found, weight)
        assert total is not None
        if all(gradient is None for gradient in gradients):
            return total
        result: Tensor = _Mean.apply(self, total, gradients, *tensors)
        return result

    def graph(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the mean loss with the graphs of all pieces.

        Args:
            tensors: Tensors that the loss is a function of.
        """
        total: Tensor | None = None
        for number, weight in enumerate(self._weights):
            loss = self._evaluate(number, tensors)
            former, total = total, weight * loss if total is None else total + weight * loss
            # What one loss was evaluated under is what all were.
            carry(loss if former is None else former, total)
        assert total is not None
        return total

    def second(
        self, tensors: Sequence[Tensor], cotangents: Gradients, needed: Sequence[bool]
    ) -> Gradients:
        """Return the derivative of ⟨u, ∇L⟩, piece by piece.

        Args:
            tensors: Where the loss L is differentiated.
            cotangents: u, ``None`` for zeros.
            needed: Which tensors the derivative is taken in.
        """
        total: Gradients = [None] * len(tensors)
        for number, weight in enumerate(self._weights):
            # The kernels that a graph of second derivatives needs, which is made here anew.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                given = [u is not None for u in cotangents]
                either = [a or b for a, b in zip(needed, given, strict=True)]
                leaves = _leaves(tensors, either)
                loss = self._evaluate(number, leaves)
                points = [leaf for leaf, u in zip(leaves, cotangents, strict=True) if u is not None]
                if not loss.requires_grad:
                    continue
                self._watch(loss, points)
                with within(loss):
                    first = torch.autograd.grad(loss, points, create_graph=True, allow_unused=True)
                    arriving = [u for u in cotangents if u is not None]
                    pairs = [
                        (gradient, u)
                        for gradient, u in zip(first, arriving, strict=True)
                        if gradient is not None and gradient.requires_grad
                    ]
                    if not pairs:
                        continue
                    heads, vectors = zip(*pairs, strict=True)
                    wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
                    found = torch.autograd.grad(heads, wanted, vectors, allow_unused=True)
            _add(total, leaves, wanted, found, weight)
        return total


class _Mean(torch.autograd.Function):
    """The mean loss, whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, pieces: Pieces, total: Tensor, known: Gradients, *given: Tensor
    ) -> Tensor:
        ctx.pieces, ctx.known = pieces, known
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None, None, None)
        if scale is None:
            return (*rest, *[None] * len(ctx.known))
        if not torch.is_grad_enabled():
            return (*rest, *[None if g is None else scale * g for g in ctx.known])
        found = iter(_Gradient.apply(ctx.pieces, ctx.known, scale, *ctx.saved_tensors))
        return (*rest, *[None if g is None else next(found) for g in ctx.known])


class _Gradient(torch.autograd.Function):
    """A multiple of the gradient of the mean loss, in those tensors that it reaches."""

    @staticmethod
    def forward(
        ctx: Any, pieces: Pieces, known: Gradients, scale: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.pieces, ctx.known = pieces, known
        ctx.save_for_backward(scale, *given)
        ctx.set_materialize_grads(False)
        return tuple(scale * gradient for gradient in known if gradient is not None)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        scale, *given = ctx.saved_tensors
        _, _, scaled, *needed = ctx.needs_input_grad
        remaining = iter(arriving)
        cotangents = [None if g is None else next(remaining) for g in ctx.known]
        if torch.is_grad_enabled():
            return None, None, *_connected(ctx.pieces, scale, given, cotangents)
        along = None
        if scaled:
            pairs = zip(ctx.known, cotangents, strict=True)
            parts = [(g * u).sum() for g, u in pairs if g is not None and u is not None]
            along = torch.stack(parts).sum() if parts else None
        vectors = [None if u is None else scale * u for u in cotangents]
        return None, None, along, *ctx.pieces.second(given, vectors, needed)


def _connected(
    pieces: Pieces, scale: Tensor, given: Sequence[Tensor], cotangents: Gradients
) -> Gradients:
    """Return the derivative of ⟨u, c ∇L⟩ in c and the tensors, which has a graph of its own."""
    # Views, since one tensor may have been computed from another, and partial derivatives are due.
    points = [tensor.view_as(tensor) for tensor in given]
    loss = pieces.graph(points)
    wanted = [p for p, u in zip(points, cotangents, strict=True) if u is not None]
    with within(loss):
        first = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
        vectors = [u for u in cotangents if u is not None]
        parts = [(g * u).sum() for g, u in zip(first, vectors, strict=True) if g is not None]
        if not parts:
            return [None] * (len(given) + 1)
        along = torch.stack(parts).sum()
        targets = [point for point in points if point.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(targets)
        if along.requires_grad and targets:
            found = torch.autograd.grad(
                scale * along, targets, create_graph=True, allow_unused=True
            )
    remaining = iter(found)
    return [along, *[next(remaining) if p.requires_grad else None for p in points]]


def _leaves(tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]


def _add(
    total: Gradients,
    leaves: Sequence[Tensor],
    wanted: Sequence[Tensor],
    found: Sequence[Tensor | None],
    weight: float,
) -> None:
    """Add the gradients of a piece to those before, in place."""
    remaining = iter(found)
    places = {id(leaf) for leaf in wanted}
    for place, leaf in enumerate(leaves):
        gradient = next(remaining) if id(leaf) in places else None
        if gradient is not None:
            former, part = total[place], weight * gradient
            total[place] = part if former is None else former + part


def _in_forward_mode(tensors: Sequence[Tensor]) -> bool:
    level: int = getattr(forward_ad, "_current_level", -1)
    return level >= 0 or any(map(is_functorch_wrapped_tensor, tensors))
