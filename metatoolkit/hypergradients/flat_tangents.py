"""Tangents of all coordinates of a state side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_said_of
from metatoolkit.state import InnerState


class FlatTangents:
    """Tangents of all coordinates side by side, for learners that tell how an update moves them.

    Args:
        state: State that they are the derivatives of; see :meth:`fits`.
        count: Number of directions.

    Attributes:
        parameters: Tangents of θ, (count, P) for P coordinates.
        slots: Tangents of the optimizer state by slot name, (count, P).
        places: First coordinate and the one after the last by parameter name.
    """

    def __init__(self, state: InnerState, count: int) -> None:
        sizes = [tensor.numel() for tensor in state.parameters.values()]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.places = {
            name: (end - size, end)
            for name, size, end in zip(state.parameters, sizes, ends, strict=True)
        }
        like = next(iter(state.parameters.values()))
        self.parameters = like.new_zeros(count, sum(sizes))
        self.slots = {slot: torch.zeros_like(self.parameters) for slot in state.optimizer}

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

    def views(self, state: InnerState) -> list[Tensor]:
        """Return the tangents of each of ``state.tensors()``, (count, *shape), sharing memory.

        Args:
            state: The state.
        """
        matrices = [self.parameters, *self.slots.values()]
        shapes = {name: tensor.shape for name, tensor in state.parameters.items()}
        return [
            matrix[:, first:last].view(len(matrix), *shapes[name])
            for matrix in matrices
            for name, (first, last) in self.places.items()
        ]

    def nonzero(self, chosen: list[int]) -> list[bool]:
        """Return whether each of some rows has an entry other than zero.

        Args:
            chosen: The rows.
        """
        every = [self.parameters, *self.slots.values()]
        rows = [matrix[chosen].any(1) for matrix in every]
        found: list[bool] = functools.reduce(torch.logical_or, rows).tolist()
        return found

    def rows(self, chosen: list[int], names: Iterable[str], state: InnerState) -> list[Tensor]:
        """Return some tangents of some parameters, (len(chosen), *shape) each.

        Args:
            chosen: Rows to return.
            names: Names of parameters.
            state: State that they are the derivatives of.
        """
        matrix = self.parameters if len(chosen) == len(self.parameters) else self.parameters[chosen]
        found = []
        for name in names:
            first, last = self.places[name]
            part = matrix[:, first:last]
            found.append(part.view(len(chosen), *state.parameters[name].shape))
        return found
