"""Tangents of inner states, carried forward through inner steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.course import Course
from metatoolkit.hypergradients.flat_state import FlatState
from metatoolkit.hypergradients.flat_tangents import FlatTangents, Tangents
from metatoolkit.hypergradients.products import Adjoint, batched_products, loss_gradient
from metatoolkit.hypergradients.tangent_rows import Rows, nonzero
from metatoolkit.hypergradients.tangent_updates import (
    Along,
    ClosedUpdate,
    DifferentiatedUpdate,
    TangentUpdate,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.loss_gradients import loss_gradients
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors, with_leaves
from metatoolkit.stateless.exchange import within

Directions = Callable[[int, int], list[Tensor]]
"""Returns the directions ``first`` to ``last`` in λ: (last − first, *shape) per meta-parameter."""


class TangentBundle:
    """A state and its derivatives along directions in λ, moved forward by inner steps.

    A step is U(θ, slots, g, λ) with g the gradient of the training loss L. The derivative of g
    along (θ̇, λ̇) is the gradient in θ of ⟨θ̇, ∂L/∂θ⟩ + ⟨λ̇, ∂L/∂λ⟩, since second derivatives commute:
    a double backward over one graph that all directions share, batched over them by ``vmap``. That
    of U is told by the learner in closed form, as SGD does, or is the derivative of its
    vector-Jacobian product in the vector, batched likewise. The double backward is left out where
    it is zero: for directions along which neither the state has moved so far, nor a λ that the
    training loss reads. Hyper-parameters, functions of λ and the step alone, are evaluated for
    several steps at a time. Random numbers are drawn once for all directions. Buffers, such as
    BatchNorm's running statistics, are constants of the derivative.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state to start from; it depends on λ where the problem says so.
        meta: Meta-parameters by name, leaves that require a gradient.
        directions: Directions in λ.
        count: Number of directions.
        chunk: Number of directions that are pushed at a time; 1 does without ``vmap``.
        steps: Number of steps that will be taken, for which hyper-parameters are evaluated ahead;
            more may be.

    Attributes:
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
        steps: int = 1,
    ) -> None:
        if is_own(inner, InnerLearner, "step"):
            raise UnsupportedError(
                "forward mode needs an inner step that is an update by the gradient of the "
                f"training loss, and that of {type(inner).__name__} is another map; use Unrolled."
            )
        self.problem = problem
        self.inner = inner
        self.meta = meta
        self._state: InnerState | FlatState = inner.enter(problem, state, meta).detach()
        fits = FlatTangents.fits(inner, state)
        self._tangents = (FlatTangents if fits else Tangents)(state, count, chunk)
        self._course = Course(problem, inner, meta, state.step + steps)
        self._directions = directions
        # A few directions are the same tensors at each step; many are made anew for each chunk.
        self._kept = directions(0, count) if count <= chunk else None
        self._own_gradients = is_own(inner, InnerLearner, "gradients")
        self.reached: set[str] = set()
        self.products = 0
        if problem.begins_with_meta(state):
            self._begin()

    @property
    def state(self) -> InnerState:
        """State that has been reached."""
        return self._state.state if isinstance(self._state, FlatState) else self._state

    @property
    def _entry(self) -> InnerState:
        """The state as far as a loss reads it."""
        return self._state.entry if isinstance(self._state, FlatState) else self._state

    @property
    def tangents(self) -> list[Tensor]:
        """Derivative of each of ``state.tensors()``, (count, *shape)."""
        return self._tangents.by_direction()

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
        for rows in self._tangents.chunks:
            moved = batched_products(products, vectors, self._directions(rows.first, rows.last))
            for place, tangent in zip(places, moved, strict=True):
                self._tangents.views[place][rows.first : rows.last].copy_(tangent)
            rows.moved = len(rows)

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
        entry = with_leaves(self._entry, True)
        loss, gradients, direct, buffers = self._gradients(entry, batch)
        fields = [*gradients.values(), *(way for way in direct if way is not None)]
        theta = [entry.parameters[name] for name in gradients]
        update = self._update(gradients)
        for rows in self._tangents.chunks:
            along = functools.cache(functools.partial(self._along, rows))
            bending, active = self._arranged(rows, update, direct, along)
            bent = None
            if bending:
                heading = self._heading(rows, bending, gradients)
                if len(fields) > len(theta):
                    heading += [
                        rows.taken(part, bending)
                        for part, way in zip(along(), direct, strict=True)
                        if way is not None
                    ]
                with within(loss):
                    bent = batched_products(fields, theta, heading)
                self.products += bending
            update.push(rows, active, bent, along)
            rows.settle(self._tangents.matrices, active)
        self.reached |= update.reached
        self.reached |= {n for n, way in zip(self.meta, direct, strict=True) if way is not None}
        self._state = update.after(buffers)

    def _gradients(
        self, entry: InnerState, batch: Any
    ) -> tuple[Tensor, Tensors, Sequence[Tensor | None], Tensors]:
        """Return the training loss, its gradients in θ and λ with graphs, and the buffers."""
        problem, meta = self.problem, self.meta
        if not self._own_gradients:
            return loss_gradients(problem, entry, meta, batch, create_graph=True, direct=True)
        loss, gradients, buffers = self.inner.gradients(problem, entry, meta, batch, True)
        leaves = list(meta.values())
        problem.watch_second_derivatives(loss, leaves, "λ")
        return loss, gradients, loss_gradient(loss, leaves, create_graph=True), buffers

    def _update(self, gradients: Tensors) -> TangentUpdate:
        """Return the update by given gradients, in closed form where the learner has one."""
        if isinstance(self._tangents, FlatTangents):
            course = self._course.at(self._entry.step)
            if course.resolved is not None:
                present = self._state
                flat = present if isinstance(present, FlatState) else FlatState.of(present)
                return ClosedUpdate(self.inner, flat, self.meta, gradients, course, self._tangents)
        return DifferentiatedUpdate(
            self.problem, self.inner, self.state, self.meta, gradients, self._tangents
        )

    def _along(self, rows: Rows) -> list[Tensor]:
        """Return the directions of a chunk."""
        return self._directions(rows.first, rows.last) if self._kept is None else self._kept

    def _arranged(
        self, rows: Rows, update: TangentUpdate, direct: Sequence[Tensor | None], along: Along
    ) -> tuple[int, int]:
        """Return how many first rows the gradient may change along, and how many the state."""
        if rows.moved == len(rows):
            return rows.moved, rows.moved
        read = [False] * len(rows)
        if any(way is not None for way in direct):
            pairs = zip(along(), direct, strict=True)
            read = nonzero([part for part, way in pairs if way is not None])
        stirred = update.stirred(rows, along)
        return rows.arrange(read, stirred)

    def _heading(self, rows: Rows, count: int, names: Tensors) -> list[Tensor]:
        """Return the first tangents of a chunk of some parameters, (count, *shape) each."""
        own = self._tangents.own
        return [own[name][rows.first : rows.first + count] for name in names]

    def slopes(self, adjoint: Adjoint) -> Tensor:
        """Return the derivative of a function of the state along each direction, (count,).

        Args:
            adjoint: Its derivative in ``state.tensors()``.
        """
        return self._tangents.slopes(adjoint)
