"""How the update of an inner learner moves tangents: in closed form, or by differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.course import StepValues
from metatoolkit.hypergradients.flat_state import FlatState
from metatoolkit.hypergradients.flat_tangents import FlatTangents, Tangents
from metatoolkit.hypergradients.products import batched_products, vector_jacobian_product
from metatoolkit.hypergradients.tangent_rows import Rows
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.update_tangents import Slope, UpdateTangents
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

Along = Callable[[], list[Tensor]]
"""Returns the directions of a chunk in λ: (count, *shape) for each meta-parameter."""


class DifferentiatedUpdate:
    """An update whose graph is differentiated: its derivative along directions in all it reads.

    That is the derivative of its vector-Jacobian product in the vector, batched over directions.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        entry: State before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        gradients: Gradient of the training loss by parameter name.
        tangents: Tangents of the state, changed in place.

    Attributes:
        reached: Names of the meta-parameters that it depends on through hyper-parameters.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        entry: InnerState,
        meta: Tensors,
        gradients: Tensors,
        tangents: Tangents,
    ) -> None:
        points = [tensor.detach().requires_grad_() for tensor in entry.tensors()]
        entry, leaves = entry.with_tensors(points), list(meta.values())
        heads = [gradient.detach().requires_grad_() for gradient in gradients.values()]
        with torch.enable_grad():
            after = inner.apply(problem, entry, meta, dict(zip(gradients, heads, strict=True)))
            outputs = after.tensors()
            self._vectors = [torch.zeros_like(output).requires_grad_() for output in outputs]
            # Slots that no variable enters, such as a rate that only falls, have no graph.
            self._products = vector_jacobian_product(
                outputs, [*points, *heads, *leaves], self._vectors, create_graph=True
            )
        self._after = after.detach()
        direct = self._products[len(points) + len(heads) :]
        self.reached = {n for n, way in zip(meta, direct, strict=True) if way is not None}
        self._tangents, self._gradients = tangents, heads

    def stirred(self, rows: Rows, along: Along) -> list[bool]:
        """Return for each direction of a chunk whether hyper-parameters may change along it.

        Args:
            rows: The rows of the chunk.
            along: Returns the directions.
        """
        return [True] * len(rows)

    def push(self, rows: Rows, active: int, bent: list[Tensor] | None, along: Along) -> None:
        """Move the first rows of the tangents of a chunk.

        Args:
            rows: The rows of the chunk.
            active: Number of rows along which the state may change.
            bent: Derivative of each gradient along the first of these, (bending, *shape); ``None``
                where it changes along none.
            along: Returns the directions.
        """
        tangents = [view[rows.first : rows.first + active] for view in self._tangents.views]
        pushed = [
            _grown(None if bent is None else bent[place], gradient, active)
            for place, gradient in enumerate(self._gradients)
        ]
        turned = [rows.taken(part, active) for part in along()]
        moved = batched_products(self._products, self._vectors, [*tangents, *pushed, *turned])
        for tangent, found in zip(tangents, moved, strict=True):
            tangent.copy_(found)

    def after(self, buffers: Tensors) -> InnerState:
        """Return the state after the update, detached.

        Args:
            buffers: Buffers after the step.
        """
        return self._after.replaced(buffers=buffers)


class ClosedUpdate:
    """An update that an inner learner moves tangents by itself through, as SGD does.

    Args:
        inner: Inner learner, which has ``move_tangents``.
        state: State before the step.
        meta: Meta-parameters by name.
        gradients: Gradient of the training loss by parameter name.
        course: Hyper-parameters at this step, each a number.
        tangents: Tangents of the state, changed in place.

    Attributes:
        reached: Names of the meta-parameters that hyper-parameters have depended on in a push.
    """

    def __init__(
        self,
        inner: Any,
        state: FlatState,
        meta: Tensors,
        gradients: Tensors,
        course: StepValues,
        tangents: FlatTangents,
    ) -> None:
        self.reached: set[str] = set()
        self._inner, self._state, self._names = inner, state, list(meta)
        self._course, self._tangents = course, tangents
        self._runs = _runs(state.entry, gradients, course)
        with torch.no_grad():
            self._gradients = [
                torch.cat([gradients[name].reshape(-1) for name in names])
                for names, _ in self._runs
            ]
        places = {name: place for place, name in enumerate(gradients)}
        self._columns = [[places[name] for name in names] for names, _ in self._runs]
        self._pieces: list[tuple[Tensor, Tensors]] = []

    def stirred(self, rows: Rows, along: Along) -> list[bool]:
        """Return for each direction of a chunk whether hyper-parameters change along it.

        Args:
            rows: The rows of the chunk.
            along: Returns the directions.
        """
        found = [False] * len(rows)
        piece = self._course.piece
        if piece is not None:
            _, turns = piece.along(rows, self._names, along, self._tangents.parameters)
            for place in self._course.places.values():
                for row in turns[place]:
                    found[rows.order[row]] = True
        return found

    def push(self, rows: Rows, active: int, bent: list[Tensor] | None, along: Along) -> None:
        """Move the first rows of the tangents of a chunk; see :class:`DifferentiatedUpdate`.

        Args:
            rows: The rows of the chunk.
            active: Number of rows along which the state may change.
            bent: Derivative of each gradient along the first of these, (bending, *shape); ``None``
                where it changes along none.
            along: Returns the directions.
        """
        state, tangents = self._state, self._tangents
        own = slice(rows.first, rows.first + active)
        pieces = []
        with torch.no_grad():
            for (names, values), gradient, columns in zip(
                self._runs, self._gradients, self._columns, strict=True
            ):
                run = slice(tangents.places[names[0]][0], tangents.places[names[-1]][1])
                # The step writes into it: gradients of sums share their memory, or are expanded.
                pushed = None
                if bent is not None:
                    parts = [bent[place] for place in columns]
                    pushed = torch.cat([part.reshape(len(part), -1) for part in parts], 1)
                pushed = _grown(pushed, gradient, active)
                if values.get("maximize"):
                    gradient, pushed = -gradient, -pushed

                def slope(name: str, values: dict[str, Any] = values) -> Slope | None:
                    return self._slope(values[name], rows, along)

                pieces.append(
                    self._inner.move_tangents(
                        state.parameters[run],
                        gradient,
                        {slot: vector[run] for slot, vector in state.slots.items()},
                        values,
                        state.entry.steps_of(names[0]),
                        UpdateTangents(
                            tangents.parameters[own, run],
                            pushed,
                            {slot: matrix[own, run] for slot, matrix in tangents.slots.items()},
                            slope,
                        ),
                    )
                )
        self._pieces = pieces

    def after(self, buffers: Tensors) -> FlatState:
        """Return the state after the update; to be called when all chunks are pushed.

        Args:
            buffers: Buffers after the step.
        """
        state, places = self._state, self._tangents.places
        moved: list[Tensor] = []
        slots: dict[str, list[Tensor]] = {slot: [] for slot in state.slots}
        end = 0

        def keep(last: int) -> None:
            """Let coordinates stay that no run holds."""
            if end < last:
                moved.append(state.parameters[end:last])
                for slot, parts in slots.items():
                    parts.append(state.slots[slot][end:last])

        for (names, _), (parameter, changed) in zip(self._runs, self._pieces, strict=True):
            first, last = places[names[0]][0], places[names[-1]][1]
            keep(first)
            moved.append(parameter)
            for slot, parts in slots.items():
                parts.append(changed[slot] if slot in changed else state.slots[slot][first:last])
            end = last
        keep(len(state.parameters))
        missed = state.entry.missed
        reached = {name for names, _ in self._runs for name in names}
        for name in state.entry.parameters:
            if name not in reached:
                missed = missed | {name: missed.get(name, 0) + 1}
        after = {slot: _joined(parts) for slot, parts in slots.items()}
        return state.moved(_joined(moved), after, buffers, missed)

    def _slope(self, value: Any, rows: Rows, along: Along) -> Slope | None:
        """Return the derivative of a hyper-parameter along the rows of a chunk."""
        place, piece = self._course.places.get(id(value)), self._course.piece
        if place is None or piece is None:
            return None
        self.reached |= piece.reached[place]
        slopes, _ = piece.along(rows, self._names, along, self._tangents.parameters)
        # Along rows after those that may move, none of them changes.
        return slopes[place]


def _runs(
    state: InnerState, gradients: Tensors, course: StepValues
) -> list[tuple[list[str], dict[str, Any]]]:
    """Return the parameters that move, cut where hyper-parameters or numbers of steps change.

    Args:
        state: State before the step.
        gradients: Gradient by the names of the parameters that move.
        course: Hyper-parameters at this step.
    """
    resolved = course.resolved
    assert resolved is not None
    runs: list[tuple[list[str], dict[str, Any]]] = []
    before: tuple[int, dict[str, Any]] | None = None
    for name in state.parameters:
        if name not in gradients:
            before = None
            continue
        step, values = state.steps_of(name), resolved(name)
        if before is not None and before[0] == step and _are_same(before[1], values):
            runs[-1][0].append(name)
        else:
            runs.append(([name], values))
        before = step, values
    return runs


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one is other or all(value is other[name] for name, value in one.items())


def _grown(part: Tensor | None, like: Tensor, count: int) -> Tensor:
    """Return rows, (count, *shape), zeros after those that are given."""
    if part is not None and len(part) == count:
        return part
    found = like.new_zeros(count, *like.shape)
    if part is not None:
        found[: len(part)] = part
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


TangentUpdate = ClosedUpdate | DifferentiatedUpdate
"""An update with its state after the step, and a method that pushes tangents through it."""
