"""How the update of an inner learner moves tangents: in closed form, or by differentiation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.flat_tangents import FlatTangents
from metatoolkit.hypergradients.products import (
    Adjoint,
    batched_products,
    vector_jacobian_product,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import hyperparameters_at, leaves_of
from metatoolkit.inner.update_tangents import UpdateTangents
from metatoolkit.inner.updates import updated_state
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


class DifferentiatedUpdate:
    """An update whose graph is differentiated: its derivative along directions in all it reads.

    That is the derivative of its vector-Jacobian product in the vector, batched over directions.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        entry: State before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        gradients: Gradient of the training loss by parameter name.
        tangents: Derivative of each of ``entry.tensors()``, (count, *shape), changed in place.

    Attributes:
        after: State after the update, detached.
        reached: Names of the meta-parameters that it depends on through hyper-parameters.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        entry: InnerState,
        meta: Tensors,
        gradients: Tensors,
        tangents: list[Tensor],
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
        self.after = after.detach()
        direct = self._products[len(points) + len(heads) :]
        self.reached = {n for n, way in zip(meta, direct, strict=True) if way is not None}
        self._tangents = tangents

    def push(
        self, first: int, last: int, bending: list[int], bent: list[Tensor], along: list[Tensor]
    ) -> None:
        """Move the tangents along some directions.

        Args:
            first: First direction.
            last: Direction after the last one.
            bending: Those along which the gradient changes, counted from the first.
            bent: Derivative of each gradient along these, (len(bending), *shape).
            along: The directions, (last − first, *shape) for each meta-parameter.
        """
        rows = [tangent[first:last] for tangent in self._tangents]
        if len(bending) < last - first:
            bent = [_spread(part, bending, last - first) for part in bent]
        moved = batched_products(self._products, self._vectors, [*rows, *bent, *along])
        for row, tangent in zip(rows, moved, strict=True):
            row.copy_(tangent)

    def stirred(self, first: int, last: int) -> list[bool]:
        """Return along which directions of the last push hyper-parameters may have changed.

        Args:
            first: First direction.
            last: Direction after the last one.
        """
        return [True] * (last - first)


class ClosedUpdate:
    """An update that an inner learner moves tangents by itself through, as SGD does.

    Args:
        inner: Inner learner, which has ``move_tangents``.
        state: Detached state before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        gradients: Gradient of the training loss by parameter name, detached.
        values: Hyper-parameters by parameter name, for those that have a gradient.
        tangents: Tangents of the state, changed in place.

    Attributes:
        after: State after the update.
        reached: Names of the meta-parameters that hyper-parameters have depended on in a push.
    """

    def __init__(
        self,
        inner: Any,
        state: InnerState,
        meta: Tensors,
        gradients: Tensors,
        values: dict[str, dict[str, Any]],
        tangents: FlatTangents,
    ) -> None:
        with torch.no_grad():
            self.after = updated_state(inner.update, state, gradients, values.__getitem__)
        self.reached: set[str] = set()
        self._inner, self._state, self._meta = inner, state, meta
        self._gradients, self._values, self._tangents = gradients, values, tangents
        self._runs = _runs(state, values)
        self._slopes: dict[int, dict[str, Tensor | None]] = {}

    @classmethod
    def begin(
        cls,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        gradients: Tensors,
        tangents: FlatTangents,
    ) -> ClosedUpdate | None:
        """Return the update, or ``None`` where a hyper-parameter is more than one number.

        Args:
            problem: The bilevel problem.
            inner: Inner learner, which has ``move_tangents``.
            state: Detached state before the step.
            meta: Meta-parameters by name, leaves that require a gradient.
            gradients: Gradient of the training loss by parameter name.
            tangents: Tangents of the state.
        """
        resolved = hyperparameters_at(
            inner.hyperparameters, inner.groups, problem, meta, state.step
        )
        values = {name: resolved(name) for name in gradients}
        for own in values.values():
            if any(isinstance(value, Tensor) and value.dim() > 0 for value in own.values()):
                return None
        heads = {name: gradient.detach() for name, gradient in gradients.items()}
        return cls(inner, state, meta, heads, values, tangents)

    def push(
        self, first: int, last: int, bending: list[int], bent: list[Tensor], along: list[Tensor]
    ) -> None:
        """Move the tangents along some directions; see :meth:`DifferentiatedUpdate.push`.

        Args:
            first: First direction.
            last: Direction after the last one.
            bending: Those along which the gradient changes, counted from the first.
            bent: Derivative of each gradient along these, (len(bending), *shape).
            along: The directions, (last − first, *shape) for each meta-parameter.
        """
        state, flat, count = self._state, self._tangents, len(bending)
        parts = dict(zip(self._gradients, bent, strict=True))
        slopes: dict[int, Tensor | None] = {}
        self._last_slopes = slopes
        with torch.no_grad():
            for names in self._runs:
                begin, end = flat.places[names[0]][0], flat.places[names[-1]][1]
                values = self._values[names[0]]
                gradient = _joined([self._gradients[name].reshape(-1) for name in names], 0)
                columns = [parts[n].reshape(count, self._gradients[n].numel()) for n in names]
                # The step writes into it: gradients of sums share their memory, or are expanded.
                pushed = torch.cat(columns, 1)
                if count < last - first:
                    pushed = _spread(pushed, bending, last - first)
                if values.get("maximize"):
                    gradient, pushed = -gradient, -pushed

                def slope(name: str, values: dict[str, Any] = values) -> Tensor | None:
                    value = values[name]
                    if id(value) not in slopes:
                        slopes[id(value)] = self._slope(value, along)
                    return slopes[id(value)]

                self._inner.move_tangents(
                    _joined([state.parameters[name].reshape(-1) for name in names], 0),
                    gradient,
                    {
                        slot: _joined([tensors[name].reshape(-1) for name in names], 0)
                        for slot, tensors in state.optimizer.items()
                    },
                    {name: _detached(value) for name, value in values.items()},
                    state.steps_of(names[0]),
                    UpdateTangents(
                        flat.parameters[first:last, begin:end],
                        pushed,
                        {slot: own[first:last, begin:end] for slot, own in flat.slots.items()},
                        slope,
                    ),
                )

    def stirred(self, first: int, last: int) -> list[bool]:
        """Return along which directions of the last push hyper-parameters change.

        Args:
            first: First direction.
            last: Direction after the last one.
        """
        present = [slope != 0 for slope in self._last_slopes.values() if slope is not None]
        if not present:
            return [False] * (last - first)
        found: list[bool] = functools.reduce(torch.logical_or, present).tolist()
        return found

    def _slope(self, value: Any, along: list[Tensor]) -> Tensor | None:
        """Return the derivative of a hyper-parameter along directions, (count,)."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return None
        if not self._slopes:
            self._slopes = _value_gradients(self._values, self._meta)
        total: Tensor | None = None
        pairs = zip(along, self._slopes[id(value)].items(), strict=True)
        for part, (name, gradient) in pairs:
            if gradient is not None:
                self.reached.add(name)
                term = part.reshape(len(part), -1) @ gradient.reshape(-1)
                total = term if total is None else total + term
        return total if total is None else total.to(self._tangents.parameters.dtype)


def _value_gradients(
    values: dict[str, dict[str, Any]], meta: Tensors
) -> dict[int, dict[str, Tensor | None]]:
    """Return the gradient of each value in λ, by its identity; one pass where none share a leaf."""
    every = {id(v): v for own in values.values() for v in own.values() if isinstance(v, Tensor)}
    every = {key: value for key, value in every.items() if value.requires_grad}
    leaves = list(meta.values())
    reached = {key: leaves_of(value, meta) for key, value in every.items()}

    def found(outputs: list[Tensor]) -> Adjoint:
        return list(torch.autograd.grad(outputs, leaves, retain_graph=True, allow_unused=True))

    if len(set().union(*reached.values())) < sum(map(len, reached.values())):
        return {k: dict(zip(meta, found([v]), strict=True)) for k, v in every.items()}
    together = dict(zip(meta, found(list(every.values())), strict=True))
    return {
        key: {name: together[name] if id(leaf) in own else None for name, leaf in meta.items()}
        for key, own in reached.items()
    }


def _runs(state: InnerState, values: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the parameters that move, cut where hyper-parameters or numbers of steps change."""
    runs: list[list[str]] = []
    before: tuple[Any, ...] | None = None
    for name in state.parameters:
        if name not in values:
            before = None
            continue
        present = (state.steps_of(name), *map(id, values[name].values()))
        if present == before:
            runs[-1].append(name)
        else:
            runs.append([name])
        before = present
    return runs


def _spread(part: Tensor, places: list[int], count: int) -> Tensor:
    """Return rows at their places among ``count``, and zeros for the others."""
    found = part.new_zeros(count, *part.shape[1:])
    if places:
        found[places] = part
    return found


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


TangentUpdate = ClosedUpdate | DifferentiatedUpdate
"""An update with its state after the step, and a method that pushes tangents through it."""

Directions = Callable[[int, int], list[Tensor]]
"""Returns the directions ``first`` to ``last`` in λ: (last − first, *shape) per meta-parameter."""
