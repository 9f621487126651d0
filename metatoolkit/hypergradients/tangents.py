"""Tangents of inner states, carried forward through inner steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.flat_tangents import FlatTangents
from metatoolkit.hypergradients.products import (
    Adjoint,
    as_real,
    batched_products,
    loss_gradient,
)
from metatoolkit.hypergradients.tangent_updates import (
    ClosedUpdate,
    DifferentiatedUpdate,
    Directions,
    TangentUpdate,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors, with_leaves
from metatoolkit.stateless.exchange import within


class TangentBundle:
    """A state and its derivatives along directions in λ, moved forward by inner steps.

    A step is U(θ, slots, g, λ) with g the gradient of the training loss L. The derivative of g
    along (θ̇, λ̇) is the gradient in θ of ⟨θ̇, ∂L/∂θ⟩ + ⟨λ̇, ∂L/∂λ⟩, since second derivatives commute:
    a double backward over one graph that all directions share, batched over them by ``vmap``. That
    of U is told by the learner in closed form, as SGD does, or is the derivative of its
    vector-Jacobian product in the vector, batched likewise. The double backward is left out where
    it is zero: for directions along which neither the state has moved so far, nor a λ that the
    training loss reads. Random numbers are drawn once for all directions. Buffers, such as
    BatchNorm's running statistics, are constants of the derivative.

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
        self._flat = FlatTangents(state, count) if FlatTangents.fits(inner, state) else None
        if self._flat is None:
            self.tangents = [tensor.new_zeros(count, *tensor.shape) for tensor in state.tensors()]
        else:
            self.tangents = self._flat.views(state)
        self._directions = directions
        self._chunks = [(i, min(i + chunk, count)) for i in range(0, count, chunk)]
        # A few directions are the same tensors at each step; many are made anew for each chunk.
        self._along = directions(0, count) if len(self._chunks) == 1 else None
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
        # Once for all products of the step, each of which needs them.
        with double_backward_kernels():
            self._step(batch)

    def _step(self, batch: Any) -> None:
        problem, inner, meta = self.problem, self.inner, self.meta
        leaves = list(meta.values())
        entry = with_leaves(self.state, False)
        loss, gradients, buffers = inner.gradients(problem, entry, meta, batch, True)
        problem.watch_second_derivatives(loss, leaves, "λ")
        direct = loss_gradient(loss, leaves, create_graph=True)
        fields = [*gradients.values(), *(way for way in direct if way is not None)]
        theta = [entry.parameters[name] for name in gradients]
        update = self._update(entry, gradients)
        for first, last in self._chunks:
            along = self._along or self._directions(first, last)
            read = [part for part, way in zip(along, direct, strict=True) if way is not None]
            bending = self._bending(first, last, read)
            if bending:
                places = [first + place for place in bending]
                heading = [*self._rows(places, gradients), *(_chosen(p, bending) for p in read)]
                with within(loss):
                    bent = batched_products(fields, theta, heading)
            else:
                bent = [tensor.new_zeros(0, *tensor.shape) for tensor in theta]
            update.push(first, last, bending, bent, along)
            self.products += len(bending)
            if not all(self._moved[first:last]):
                stirred = update.stirred(first, last)
                for place in bending:
                    stirred[place] = True
                self._look_at([first + place for place, might in enumerate(stirred) if might])
        self.reached |= update.reached
        self.reached |= {name for name, way in zip(meta, direct, strict=True) if way is not None}
        self.state = update.after.replaced(buffers=buffers)

    def _update(self, entry: InnerState, gradients: Tensors) -> TangentUpdate:
        """Return the update by given gradients, in closed form where the learner has one."""
        problem, inner, meta = self.problem, self.inner, self.meta
        if self._flat is not None:
            state = (problem, inner, self.state, meta)
            if (closed := ClosedUpdate.begin(*state, gradients, self._flat)) is not None:
                return closed
        return DifferentiatedUpdate(problem, inner, entry, meta, gradients, self.tangents)

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

    def _rows(self, places: list[int], names: Iterable[str]) -> list[Tensor]:
        """Return the tangents of parameters along some directions."""
        if self._flat is not None:
            return self._flat.rows(places, names, self.state)
        own = dict(zip(self.state.parameters, self.tangents, strict=False))
        return [_chosen(own[name], places) for name in names]

    def _look_at(self, places: list[int]) -> None:
        """Note which of some directions the state has begun to move along."""
        rest = [place for place in places if not self._moved[place]]
        if not rest:
            return
        if self._flat is not None:
            found = self._flat.nonzero(rest)
        else:
            found = _nonzero([_chosen(tangent, rest) for tangent in self.tangents])
        for place, moves in zip(rest, found, strict=True):
            self._moved[place] = moves

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


def _chosen(part: Tensor, places: list[int]) -> Tensor:
    """Return some rows, without a copy where these are all."""
    return part if len(places) == len(part) else part[places]
