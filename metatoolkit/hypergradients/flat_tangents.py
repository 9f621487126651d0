"""Tangents of a state: of each tensor, or of all coordinates side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.products import Adjoint, as_real
from metatoolkit.hypergradients.tangent_rows import Rows
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_said_of
from metatoolkit.state import InnerState


class Tangents:
    """Derivatives of the tensors of a state along directions.

    Args:
        state: The state.
        count: Number of directions.
        chunk: Number of directions that are pushed at a time.

    Attributes:
        chunks: The rows of each chunk, in their order.
        views: Derivative of each of ``state.tensors()``, (count, *shape), by rows.
        own: Those of parameters by name.
        matrices: The memory of these, (count, …) each.
    """

    def __init__(self, state: InnerState, count: int, chunk: int) -> None:
        self.chunks = [Rows(i, min(i + chunk, count)) for i in range(0, count, chunk)]
        self.views = self._made(state, count)
        self.own = dict(zip(state.parameters, self.views, strict=False))
        self.matrices: Sequence[Tensor] = self.views

    def _made(self, state: InnerState, count: int) -> list[Tensor]:
        """Return zeros for each tensor of a state."""
        return [tensor.new_zeros(count, *tensor.shape) for tensor in state.tensors()]

    def by_direction(self) -> list[Tensor]:
        """Return the views in the order of the directions, as copies where the rows have another.

        Returns:
            Derivative of each of ``state.tensors()``, (count, *shape).
        """
        order = self._order()
        if order == sorted(order):
            return self.views
        rows = torch.tensor(order).argsort()
        return [view[rows.to(view.device)] for view in self.views]

    def slopes(self, adjoint: Adjoint) -> Tensor:
        """Return the derivative of a function of the state along each direction, (count,).

        Args:
            adjoint: Its derivative in ``state.tensors()``, ``None`` for zero.
        """
        pairs = zip(self.views, adjoint, strict=True)
        terms = [
            as_real(view).reshape(len(view), -1) @ as_real(cotangent).reshape(-1)
            for view, cotangent in pairs
            if cotangent is not None
        ]
        found = sum(terms, start=as_real(self.views[0]).new_zeros(len(self.views[0])))
        sorted_found = torch.empty_like(found)
        sorted_found[torch.tensor(self._order(), device=found.device)] = found
        return sorted_found

    def _order(self) -> list[int]:
        """Return the direction of each row."""
        return [rows.first + place for rows in self.chunks for place in rows.order]


class FlatTangents(Tangents):
    """Tangents of all coordinates side by side, for learners that tell how an update moves them.

    Args:
        state: State that they are the derivatives of; see :meth:`fits`.
        count: Number of directions.
        chunk: Number of directions that are pushed at a time.

    Attributes:
        parameters: Tangents of θ, (count, P) for P coordinates.
        slots: Tangents of the optimizer state by slot name, (count, P).
        places: First coordinate and the one after the last by parameter name.
    """

    def __init__(self, state: InnerState, count: int, chunk: int) -> None:
        super().__init__(state, count, chunk)
        self.matrices = [self.parameters, *self.slots.values()]

    @override
    def _made(self, state: InnerState, count: int) -> list[Tensor]:
        """Return parts of zeros for all coordinates."""
        sizes = [tensor.numel() for tensor in state.parameters.values()]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.places = {
            name: (end - size, end)
            for name, size, end in zip(state.parameters, sizes, ends, strict=True)
        }
        like = next(iter(state.parameters.values()))
        self.parameters = like.new_zeros(count, sum(sizes))
        self.slots = {slot: torch.zeros_like(self.parameters) for slot in state.optimizer}
        return [
            matrix[:, first:last].view(count, *state.parameters[name].shape)
            for matrix in (self.parameters, *self.slots.values())
            for name, (first, last) in self.places.items()
        ]

    @staticmethod
    def fits(inner: InnerLearner, state: InnerState) -> bool:
        """Return whether a learner tells how its update moves tangents, and a state is real.

        Args:
            inner: Inner learner.
            state: A state of it.
        """
        if not (hasattr(inner, "move_tangents") and is_said_of(inner, "move_tangents")):
            return False
        every = [state.parameters, *state.optimizer.values()]
        kinds = {(t.dtype, t.device) for tensors in every for t in tensors.values()}
        shapes = [{name: t.shape for name, t in tensors.items()} for tensors in every]
        (dtype, _), *others = kinds
        return not others and dtype.is_floating_point and all(one == shapes[0] for one in shapes)
