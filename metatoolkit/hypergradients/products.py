"""Gradients and products with Jacobians, ``None`` where nothing flows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from metatoolkit.errors import UnsupportedError
from metatoolkit.stateless.backward import backward
from metatoolkit.stateless.exchange import within
from metatoolkit.stateless.loss_values import refuse_sparse
from metatoolkit.stateless.traced_flags import Number, number

Adjoint = list[Tensor | None]
"""One tensor for each of several variables, in their order; ``None`` stands for zero."""


def add_adjoints(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Adjoint:
    """Return the sum of two adjoints, ``None`` where both have none.

    Args:
        one: Derivative in some tensors.
        other: Derivative in the same.
    """
    pairs = zip(one, other, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def scaled(adjoint: Adjoint, factor: float) -> Adjoint:
    """Return a multiple of an adjoint.

    Args:
        adjoint: Derivative in some tensors.
        factor: The factor; with 1 the adjoint itself is returned.
    """
    return adjoint if factor == 1 else [None if t is None else factor * t for t in adjoint]


def norm(tensors: Sequence[Tensor | None]) -> Number:
    """Return the norm of all entries, in float32 or more.

    Args:
        tensors: Tensors, or ``None`` for zeros.
    """
    parts = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)).double()
        for t in tensors
        if t is not None
    ]
    return number(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0


def loss_gradient(loss: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> Adjoint:
    """Return the gradient of a loss, which may be a constant.

    Args:
        loss: Scalar with its graph, if it has one.
        inputs: Tensors to differentiate in.
        create_graph: Whether the result has a graph of its own.

    Returns:
        One tensor for each input, ``None`` where the loss does not depend on it.
    """
    if not loss.requires_grad:
        return [None] * len(inputs)
    with within(loss):
        found = backward([loss], inputs, create_graph=create_graph)
    refuse_sparse(found)
    return list(found)


def vector_jacobian_product(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    retain_graph: bool = False,
    create_graph: bool = False,
) -> Adjoint:
    """Return the product of cotangents with the Jacobian of outputs in inputs.

    Args:
        outputs: Tensors with their graphs, where they have any.
        inputs: Tensors to differentiate in.
        cotangents: One tensor of the shape of each output, or ``None`` for zeros.
        retain_graph: Whether the graph is kept for another product.
        create_graph: Whether the result has a graph of its own.

    Returns:
        One tensor for each input, ``None`` where no output with a cotangent depends on it.
    """
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if cotangent is not None and output.requires_grad
    ]
    if not pairs:
        return [None] * len(inputs)
    present, given = zip(*pairs, strict=True)
    return list(backward(present, inputs, given, retain_graph, create_graph))


def step_product(
    after: Sequence[Tensor],
    inputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    adjoint: Adjoint,
    direct: Sequence[Tensor | None],
) -> tuple[Adjoint, Adjoint]:
    """Return the product of an adjoint with the Jacobian of steps, and what has flowed into λ.

    Args:
        after: Tensors of the state after the steps, with their graphs.
        inputs: Those of the state before them, or none.
        leaves: λ.
        adjoint: Derivative in ``after``.
        direct: Derivative in λ that is known, or none at all. It is given as that in outputs, so
            that what flows into λ is summed up in one order, whatever the steps are cut into.

    Returns:
        The derivatives in ``inputs`` and in ``leaves``.
    """
    outputs, cotangents = [*after], [*adjoint]
    if direct:
        outputs, cotangents = [*outputs, *leaves], [*cotangents, *direct]
    found = vector_jacobian_product(outputs, [*inputs, *leaves], cotangents)
    return found[: len(inputs)], found[len(inputs) :]


def batched_products(
    outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Return vector-Jacobian products for several cotangents at a time.

    Args:
        outputs: Tensors with graphs, or ``None`` for zeros.
        inputs: Tensors to differentiate in.
        cotangents: One tensor (count, *shape) for each output; they are batched by ``vmap``,
            unless there is only one.

    Returns:
        One tensor (count, *shape) for each input, zeros where no output depends on it.

    Raises:
        UnsupportedError: An operation is unknown to ``vmap``.
    """
    count = len(cotangents[0])
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and output.requires_grad
    ]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        heads = [output for output, _ in pairs]
        vectors = [cotangent for _, cotangent in pairs]
        try:
            if count == 1:
                first = [vector[0] for vector in vectors]
                single = backward(heads, inputs, first, retain_graph=True)
                found = [None if g is None else g.unsqueeze(0) for g in single]
            else:
                found = _batched(tuple(heads), tuple(inputs), vectors, count)
        except RuntimeError as error:
            words = ("vmap", "batching rule")
            if count == 1 or not any(word in str(error).lower() for word in words):
                raise
            raise UnsupportedError(
                f"an operation of the training loss cannot be batched over directions "
                f"({error}); use chunk=1, which takes them one by one."
            ) from error
    return [
        tensor.new_zeros(count, *tensor.shape) if gradient is None else gradient
        for tensor, gradient in zip(inputs, found, strict=True)
    ]


def _batched(
    outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], cotangents: list[Tensor], count: int
) -> list[Tensor | None]:
    """Return what ``torch.autograd.grad`` does with ``is_grads_batched`` and a graph that is kept.

    That looks at shapes in Python, which takes as long as a sixth of the products of a small
    network; the engine does so, too.
    """
    level = torch._C._vmapmode_increment_nesting()
    try:
        found = _engine_run_backward(
            outputs,
            tuple(torch._add_batch_dim(vector, 0, level) for vector in cotangents),
            True,
            False,
            inputs,
            allow_unreachable=True,
            accumulate_grad=False,
        )
        return [g if g is None else torch._remove_batch_dim(g, level, count, 0) for g in found]
    finally:
        torch._C._vmapmode_decrement_nesting()


def as_real(tensor: Tensor) -> Tensor:
    """Return a tensor in real numbers: a complex one as pairs of real and imaginary parts.

    Gradients of complex tensors, seen so, are those in the parts, and products transposed ones.

    Args:
        tensor: Any tensor.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_vector(
    tensors: Iterable[Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the entries of tensors one after the other, complex ones as pairs of real numbers.

    Args:
        tensors: At least one tensor, each of any shape.
        dtype: Real type of the vector; ``None`` for the one that holds all.
        device: Where the vector shall be; ``None`` for where the tensors are.
    """
    return torch.cat([as_real(t).reshape(-1).to(device=device, dtype=dtype) for t in tensors])


def refuse_complex(kind: str, tensors: dict[str, Tensor], who: str) -> None:
    """Raise where a parameter is complex.

    Args:
        kind: What the parameters are, in words.
        tensors: The parameters by name.
        who: What cannot take it.

    Raises:
        UnsupportedError: One is complex.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UnsupportedError(
                f"the {kind} {name!r} is complex, and {who} takes real ones. Keep its real and "
                "imaginary parts in a real parameter, which torch.view_as_complex views as "
                "complex, or use Unrolled."
            )
