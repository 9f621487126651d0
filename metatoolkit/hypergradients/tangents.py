"""Tangents of inner states, carried forward through inner steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.base import double_backward_kernels
from metatoolkit.hypergradients.products import (
    Adjoint,
    as_real,
    batched_products,
    loss_gradient,
    vector_jacobian_product,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import within

Directions = Callable[[int, int], list[Tensor]]
"""Returns the directions ``first`` to ``last`` in λ: (last − first, *shape) per meta-parameter."""


class TangentBundle:
    """A state and its derivatives along directions in λ, moved forward by inner steps.

    A step is U(θ, slots, g, λ) with g the gradient of the training loss L. The derivative of g
    along (θ̇, λ̇) is the gradient in θ of ⟨θ̇, ∂L/∂θ⟩ + ⟨λ̇, ∂L/∂λ⟩, since second derivatives commute:
    a double backward over one graph that all directions share, batched over them by ``vmap``. That
    of U is the derivative of its vector-Jacobian product in the vector, batched likewise. The
    double backward is left out where it is zero: for directions along which neither the state has
    moved so far, nor a λ that the training loss reads. Random numbers are drawn once for all
    directions. Buffers, such as BatchNorm's running statistics, are constants of the derivative.

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
        products: Number of directions that a double backward has been taken along, over all steps.

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
        if is_own(inner, InnerLearner, "step"):
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
        self.products = 0
        # The directions along which the state may have moved.
        self._moved = [False] * count
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
        self._moved = [True] * len(self._moved)
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
        with double_backward_kernels():
            loss, gradients, buffers = inner.gradients(problem, entry, meta, batch, True)
            problem.watch_second_derivatives(loss, leaves, "λ")
            direct = loss_gradient(loss, leaves, create_graph=True)
        fields = [*gradients.values(), *direct]
        theta = [entry.parameters[name] for name in gradients]
        reached = [index for index, name in enumerate(entry.parameters) if name in gradients]

        heads = [gradient.detach().requires_grad_() for gradient in gradients.values()]
        with torch.enable_grad():
            after = inner.apply(problem, entry, meta, dict(zip(gradients, heads, strict=True)))
            outputs = after.tensors()
            vectors = [torch.zeros_like(output).requires_grad_() for output in outputs]
            # Slots that no variable enters, such as a rate that only falls, have no graph.
            products = vector_jacobian_product(
                outputs, [*points, *heads, *leaves], vectors, create_graph=True
            )
        for name, *ways in zip(meta, direct, products[len(points) + len(heads) :], strict=True):
            if any(way is not None for way in ways):
                self.reached.add(name)
        for first, last in self._chunks:
            rows = [tangent[first:last] for tangent in self.tangents]
            along = self._directions(first, last)
            read = [part for part, way in zip(along, direct, strict=True) if way is not None]
            bending = self._bending(first, last, read)
            heading = [*(rows[i] for i in reached), *along]
            with double_backward_kernels(), within(loss):
                bent = _products_of(bending, fields, theta, heading)
            moved = batched_products(products, vectors, [*rows, *bent, *along])
            for row, tangent in zip(rows, moved, strict=True):
                row.copy_(tangent)
            self.products += len(bending)
            if not all(self._moved[first:last]):
                self._moved[first:last] = _nonzero(rows)
        self.state = dataclasses.replace(after, buffers=buffers).detach()

    def _bending(self, first: int, last: int, read: list[Tensor]) -> list[int]:
        """Return the directions, from ``first`` on, along which the gradient may change.

        Args:
            first: First direction.
            last: Direction after the last one.
            read: The parts of the directions in what the training loss reads of λ.
        """
        moved = self._moved[first:last]
        reads = _nonzero(read) if read and not all(moved) else moved
        return [row for row, pair in enumerate(zip(moved, reads, strict=True)) if any(pair)]

    def slopes(self, adjoint: Adjoint) -> Tensor:
        """Return the derivative of a function of the state along each direction, (count,).

        Args:
            adjoint: Its derivative in ``state.tensors()``.
        """
        return sum(
            (
                as_real(tangent).reshape(len(tangent), -1) @ as_real(cotangent).reshape(-1)
                for tangent, cotangent in zip(self.tangents, adjoint, strict=True)
                if cotangent is not None
            ),
            start=as_real(self.tangents[0]).new_zeros(len(self.tangents[0])),
        )


def _nonzero(parts: list[Tensor]) -> list[bool]:
    """Return whether each row of tensors (count, *shape) has an entry other than zero."""
    rows = [(part != 0).reshape(len(part), -1).any(1) for part in parts]
    found: list[bool] = torch.stack(rows).any(0).tolist()
    return found


def _products_of(
    chosen: list[int], outputs: Adjoint, inputs: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor]:
    """Return :func:`batched_products` of chosen rows, and zeros for the others."""
    count = len(cotangents[0])
    if len(chosen) == count:
        return batched_products(outputs, inputs, cotangents)
    found = [tensor.new_zeros(count, *tensor.shape) for tensor in inputs]
    if chosen:
        some = batched_products(outputs, inputs, [cotangent[chosen] for cotangent in cotangents])
        for rows, part in zip(found, some, strict=True):
            rows[chosen] = part
    return found
