"""Tangents of inner states, carried forward through inner steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.base import (
    Cost,
    Hypergradient,
    add_gradients,
    double_backward_kernels,
    fill_gradients,
)
from metatoolkit.hypergradients.trajectory import Adjoint, outer_gradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

Directions = Callable[[int, int], list[Tensor]]
"""Returns the directions ``first`` to ``last`` in λ: (last − first, *shape) per meta-parameter."""


class TangentBundle:
    """A state and its derivatives along directions in λ, moved forward by inner steps.

    A step is U(θ, slots, g, λ) with g the gradient of the training loss L. The derivative of g
    along (θ̇, λ̇) is the gradient in θ of ⟨θ̇, ∂L/∂θ⟩ + ⟨λ̇, ∂L/∂λ⟩, since second derivatives commute:
    a double backward over one graph that all directions share, batched over them by ``vmap``. That
    of U is the derivative of its vector-Jacobian product in the vector, batched likewise. Random
    numbers are drawn once for all directions. Buffers, such as BatchNorm's running statistics, are
    constants of the derivative.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state to start from; it depends on λ where the problem says so.
        meta: Meta-parameters by name, leaves that require a gradient.
        directions: Directions in λ.
        count: Number of directions.
        chunk: Number of directions that are pushed at a time; 1 does without ``vmap``.

    Attributes:
        state: State that has been reached.
        tangents: Derivative of each of ``state.tensors()``, of the shape (count, *shape).
        reached: Names of the meta-parameters that a training loss or a hyper-parameter has
            depended on so far.

    Raises:
        UnsupportedError: The inner learner's step is no update by the gradient.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        directions: Directions,
        count: int,
        chunk: int,
    ) -> None:
        if type(inner).step is not InnerLearner.step:
            raise UnsupportedError(
                "forward mode needs an inner step that is an update by the gradient of the "
                f"training loss, and that of {type(inner).__name__} is another map; use Unrolled."
            )
        self.problem = problem
        self.inner = inner
        self.meta = meta
        self.state = inner.enter(problem, state, meta).detach()
        self.tangents = [tensor.new_zeros(count, *tensor.shape) for tensor in state.tensors()]
        self._directions = directions
        self._chunks = [(i, min(i + chunk, count)) for i in range(0, count, chunk)]
        self.reached: set[str] = set()
        if problem.begins_with_meta(state):
            self._begin()

    def _begin(self) -> None:
        """Set the tangents of the parameters that λ sets."""
        with torch.enable_grad():
            # Views, since a leaf would be no function of itself.
            given = {
                name: tensor.view_as(tensor)
                for name, tensor in self.problem.initial_parameters(self.meta).items()
                if tensor.requires_grad
            }
            if not given:
                return
            vectors = [torch.zeros_like(tensor).requires_grad_() for tensor in given.values()]
            products = torch.autograd.grad(
                list(given.values()),
                list(self.meta.values()),
                vectors,
                create_graph=True,
                allow_unused=True,
            )
        pairs = zip(self.meta, products, strict=True)
        self.reached |= {name for name, product in pairs if product is not None}
        places = [list(self.state.parameters).index(name) for name in given]
        for first, last in self._chunks:
            moved = batched_products(products, vectors, self._directions(first, last))
            for place, tangent in zip(places, moved, strict=True):
                self.tangents[place][first:last].copy_(tangent)

    def step(self, batch: Any) -> None:
        """Move the state and its tangents by one inner step.

        Args:
            batch: Training batch. Cost: 3 F, and at most 6 F for each direction.

        Raises:
            UnsupportedError: An operation of the training loss is unknown to ``vmap``.
        """
        problem, inner, meta = self.problem, self.inner, self.meta
        leaves = list(meta.values())
        points = [tensor.detach().requires_grad_() for tensor in self.state.tensors()]
        entry = self.state.with_tensors(points)
        theta = list(entry.parameters.values())
        with double_backward_kernels():
            loss, gradients, buffers = inner.gradients(problem, entry, meta, batch, True)
            direct: Sequence[Tensor | None] = [None] * len(leaves)
            if loss.requires_grad:
                direct = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        fields = [*gradients.values(), *direct]

        heads = [gradient.detach().requires_grad_() for gradient in gradients.values()]
        with torch.enable_grad():
            after = inner.apply(problem, entry, meta, dict(zip(gradients, heads, strict=True)))
            outputs = after.tensors()
            vectors = [torch.zeros_like(output).requires_grad_() for output in outputs]
            products = torch.autograd.grad(
                outputs, [*points, *heads, *leaves], vectors, create_graph=True, allow_unused=True
            )
        for name, *ways in zip(meta, direct, products[len(points) + len(heads) :], strict=True):
            if any(way is not None for way in ways):
                self.reached.add(name)
        for first, last in self._chunks:
            rows = [tangent[first:last] for tangent in self.tangents]
            along = self._directions(first, last)
            with double_backward_kernels():
                bent = batched_products(fields, theta, [*rows[: len(theta)], *along])
            moved = batched_products(products, vectors, [*rows, *bent, *along])
            for row, tangent in zip(rows, moved, strict=True):
                row.copy_(tangent)
        self.state = dataclasses.replace(after, buffers=buffers).detach()

    def slopes(self, adjoint: Adjoint) -> Tensor:
        """Return the derivative of a function of the state along each direction, (count,).

        Args:
            adjoint: Its derivative in ``state.tensors()``.
        """
        return sum(
            (
                tangent.reshape(len(tangent), -1) @ cotangent.reshape(-1)
                for tangent, cotangent in zip(self.tangents, adjoint, strict=True)
                if cotangent is not None
            ),
            start=self.tangents[0].new_zeros(len(self.tangents[0])),
        )


def forward_hypergradient(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    train_batches: Sequence[Any],
    valid_batch: Any,
    directions: Directions,
    count: int,
    chunk: int,
    combine: Callable[[Tensor], Tensors],
) -> Hypergradient:
    """Take the inner steps with tangents along directions in λ, and return the estimate there.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state to start from.
        train_batches: One training batch per step.
        valid_batch: Batch for the outer loss.
        directions: Directions in λ.
        count: Number of directions.
        chunk: Number of directions that are pushed at a time.
        combine: Turns the derivatives of the outer loss through the steps along the directions,
            of the shape (count,), into a gradient by name. The direct one in λ is added to it.

    Raises:
        UnsupportedError: See :class:`TangentBundle`.
        UnusedMetaParameterError: No loss and no hyper-parameter depends on λ.
    """
    meta = problem.meta_leaves()
    bundle = TangentBundle(problem, inner, state, meta, directions, count, chunk)
    for batch in train_batches:
        bundle.step(batch)
    loss, adjoint, direct = outer_gradient(problem, bundle.state, meta, valid_batch)
    through: dict[str, Tensor | None] = dict.fromkeys(meta)
    found = combine(bundle.slopes(adjoint))
    through |= {name: found[name] for name in bundle.reached}
    total = add_gradients(list(meta), list(through.values()), direct)
    steps = len(train_batches)
    return Hypergradient(
        gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
        valid_loss=loss,
        state=bundle.state,
        cost=Cost(forward=steps + 1, backward=steps + 1, jvp=steps * count),
    )


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
        arguments = {"retain_graph": True, "allow_unused": True}
        if count == 1:
            single = torch.autograd.grad(heads, inputs, [v[0] for v in vectors], **arguments)
            found = [None if g is None else g.unsqueeze(0) for g in single]
        else:
            try:
                found = torch.autograd.grad(
                    heads, inputs, vectors, is_grads_batched=True, **arguments
                )
            except RuntimeError as error:
                if not any(word in str(error).lower() for word in ("vmap", "batching rule")):
                    raise
                raise UnsupportedError(
                    f"an operation of the training loss cannot be batched over directions "
                    f"({error}); use chunk=1, which takes them one by one."
                ) from error
    return [
        tensor.new_zeros(count, *tensor.shape) if gradient is None else gradient
        for tensor, gradient in zip(inputs, found, strict=True)
    ]
