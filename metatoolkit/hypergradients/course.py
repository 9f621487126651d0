"""Hyper-parameters over several steps with their derivatives in λ, taken by one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.tangent_rows import Rows
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.evaluated import Evaluated
from metatoolkit.inner.hyperparameters import hyperparameters_at
from metatoolkit.inner.update_tangents import Slope
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import Tensors

AHEAD = 16
"""Number of steps of which hyper-parameters are evaluated at a time."""

ENTRIES = 2**16
"""Number of entries of λ, over all these steps, that it is made fewer for."""


@dataclasses.dataclass(frozen=True)
class _Value:
    """A value of a hyper-parameter that has a graph.

    Attributes:
        value: The value, 0-d.
        meta: Meta-parameters of its step by name, leaves of their own.
        leaves: Identities of those that it depends on.
    """

    value: Tensor
    meta: Tensors
    leaves: set[int]


class _Piece:
    """Derivatives of the values of some steps along directions in λ.

    Args:
        values: The values.
        joint: Whether no two of them share a leaf.
    """

    def __init__(self, values: list[_Value], joint: bool) -> None:
        self.reached: list[set[str]] = [set() for _ in values]
        found: dict[str, tuple[list[int], list[Tensor]]] = {}
        self._count = len(values)
        gradients = _joint(values) if joint else map(_single, values)
        for place, own in enumerate(gradients):
            for name, gradient in own.items():
                self.reached[place].add(name)
                places, parts = found.setdefault(name, ([], []))
                places.append(place)
                parts.append(gradient.reshape(-1))
        self._gradients = {n: (places, torch.stack(parts)) for n, (places, parts) in found.items()}
        self._along: dict[int, tuple[int, list[Slope | None], list[list[int]]]] = {}

    def along(
        self, rows: Rows, names: list[str], directions: Callable[[], list[Tensor]], like: Tensor
    ) -> tuple[list[Slope | None], list[list[int]]]:
        """Return the derivatives along the directions of some rows, and which are not zero.

        Args:
            rows: The rows.
            names: Names of the meta-parameters.
            directions: Returns the directions, (len(rows), *shape) for each meta-parameter.
            like: Tensor whose type the derivatives shall have.

        Returns:
            The derivatives of each value by rows, ``None`` where all are zero, and the rows of
            those that are not.
        """
        known = self._along.get(rows.first)
        if known is None or known[0] != rows.changes:
            total = like.new_zeros(self._count, len(rows))
            for name, part in zip(names, directions(), strict=True):
                if name in self._gradients:
                    places, gradients = self._gradients[name]
                    turned = rows.taken(part, len(rows)).reshape(len(rows), -1)
                    total[places] += (gradients @ turned.T).to(total.dtype)
            turns: list[list[int]] = [[] for _ in range(self._count)]
            for place, row in total.nonzero().tolist():
                turns[place].append(row)
            slopes = [
                Slope(own[0], values[own[0] : own[-1] + 1]) if own else None
                for own, values in zip(turns, total.unbind(), strict=True)
            ]
            known = self._along[rows.first] = (rows.changes, slopes, turns)
        return known[1:]


@dataclasses.dataclass(frozen=True)
class StepValues:
    """Hyper-parameters at one step.

    Attributes:
        resolved: Those of a parameter by its name, without a graph; ``None`` where a value is more
            than one number.
        places: Which value of the piece each tensor is, by its identity.
        piece: Their derivatives.
    """

    resolved: Evaluated | None
    places: dict[int, int]
    piece: _Piece | None


class Course:
    """The hyper-parameters of a learner over its steps, evaluated for several steps at a time.

    They are functions of λ and the step alone. Each step gets leaves of its own for λ, so that one
    backward pass gives the derivatives of all values.

    Args:
        problem: Problem whose ``meta`` gives those that come from λ.
        inner: Inner learner.
        meta: Meta-parameters by name, leaves that require a gradient.
        end: Number of the step after the last one that will be asked for.
    """

    def __init__(
        self, problem: BilevelProblem, inner: InnerLearner, meta: Tensors, end: int
    ) -> None:
        self._problem, self._inner, self._meta, self._end = problem, inner, meta, end
        entries = sum(leaf.numel() for leaf in meta.values())
        self._ahead = max(1, min(AHEAD, ENTRIES // entries))
        self._known: dict[int, StepValues] = {}

    def at(self, step: int) -> StepValues:
        """Return the hyper-parameters at a step.

        Args:
            step: Number of steps taken before this one.

        Raises:
            ConfigurationError: See :func:`~metatoolkit.inner.hyperparameters.hyperparameters_at`.
        """
        if step not in self._known:
            self._known = self._from(step)
        return self._known[step]

    def _from(self, first: int) -> dict[int, StepValues]:
        """Return the hyper-parameters at a step and at some after it, up to the last one."""
        evaluated: list[Evaluated] = []
        values: list[_Value] = []
        places: list[dict[int, int]] = []
        joint = True
        for step in range(first, max(first + 1, min(first + self._ahead, self._end))):
            meta = {name: leaf.detach().requires_grad_() for name, leaf in self._meta.items()}
            found = hyperparameters_at(
                self._inner.hyperparameters, self._inner.groups, self._problem, meta, step
            )
            if any(value.dim() > 0 for value in found.tensors()):
                break
            own = {
                id(v): _Value(v, meta, found.leaves[id(v)])
                for v in found.tensors()
                if v.requires_grad
            }
            leaves = [value.leaves for value in own.values()]
            joint = joint and len(set().union(*leaves)) == sum(map(len, leaves))
            places.append({key: place for place, key in enumerate(own, len(values))})
            values += own.values()
            evaluated.append(found)
        if not evaluated:
            return {first: StepValues(None, {}, None)}
        piece = _Piece(values, joint) if values else None
        return {
            step: StepValues(*_detached(found, own), piece)
            for step, (found, own) in enumerate(zip(evaluated, places, strict=True), first)
        }


def _detached(found: Evaluated, places: dict[int, int]) -> tuple[Evaluated, dict[int, int]]:
    """Return values without their graphs, and their places by their new identities."""
    own: dict[int, int] = {}

    def detach(value: Tensor) -> Tensor:
        if id(value) not in places:
            return value
        bare = value.detach()
        own[id(bare)] = places[id(value)]
        return bare

    return found.map(detach), own


def _joint(values: list[_Value]) -> list[Tensors]:
    """Return the gradient of each value in what it depends on; no two share a leaf."""
    pairs = [
        (name, leaf)
        for value in values
        for name, leaf in value.meta.items()
        if id(leaf) in value.leaves
    ]
    if not pairs:
        return [{} for _ in values]
    # One output takes less time than many.
    alike: dict[Any, list[Tensor]] = {}
    for value in values:
        alike.setdefault((value.value.dtype, value.value.device), []).append(value.value)
    outputs = [torch.stack(own).sum() for own in alike.values()]
    found = iter(torch.autograd.grad(outputs, [leaf for _, leaf in pairs], allow_unused=True))
    return [
        {
            name: gradient
            for name, leaf in value.meta.items()
            if id(leaf) in value.leaves and (gradient := next(found)) is not None
        }
        for value in values
    ]


def _single(value: _Value) -> Tensors:
    """Return the gradient of a value in what it depends on."""
    found = torch.autograd.grad(
        value.value, list(value.meta.values()), retain_graph=True, allow_unused=True
    )
    return {n: g for n, g in zip(value.meta, found, strict=True) if g is not None}
