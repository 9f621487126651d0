"""A state as vectors of all its coordinates, for updates that take them side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from metatoolkit.state import InnerState, Tensors


class FlatState:
    """A state whose parameters, and each slot, are one vector; slots have the parameters' shapes.

    Args:
        entry: The state as far as a loss reads it: slots of it are not looked at.
        parameters: All parameters, (P,).
        slots: Optimizer state by slot name, (P,).

    Attributes:
        entry: As given.
        parameters: As given.
        slots: As given.
    """

    def __init__(self, entry: InnerState, parameters: Tensor, slots: Tensors) -> None:
        self.entry, self.parameters, self.slots = entry, parameters, slots

    @classmethod
    def of(cls, state: InnerState) -> FlatState:
        """Return a state as vectors.

        Args:
            state: The state, without a graph.
        """
        slots = {slot: _joined(tensors) for slot, tensors in state.optimizer.items()}
        return cls(state, _joined(state.parameters), slots)

    def moved(
        self, parameters: Tensor, slots: Tensors, buffers: Tensors, missed: dict[str, int]
    ) -> FlatState:
        """Return the state after a step, whose parameters are leaves that require a gradient.

        Args:
            parameters: All parameters after it, (P,).
            slots: Optimizer state after it by slot name, (P,).
            buffers: Buffers after it.
            missed: Number of steps that each parameter has missed by then.
        """
        entry = self.entry
        own = _cut(parameters, entry.parameters)
        entry = entry.replaced(
            parameters={name: tensor.requires_grad_() for name, tensor in own.items()},
            buffers=buffers,
            step=entry.step + 1,
            missed=missed,
        )
        return FlatState(entry, parameters, slots)

    @functools.cached_property
    def state(self) -> InnerState:
        """The whole state, which shares no memory with the vectors."""
        like = self.entry.parameters
        slots = {slot: _cut(vector, like) for slot, vector in self.slots.items()}
        return self.entry.replaced(parameters=_cut(self.parameters, like), optimizer=slots)


def _joined(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def _cut(vector: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """Return parts of a vector in the shapes of tensors, each in memory of its own.

    A loss is watched for what it does to each parameter by where its memory lies.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    # Its stub tells of the form with ``out`` alone.
    parts: list[Tensor] = torch.split_with_sizes_copy(vector, sizes)  # type: ignore
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view(tensor.shape) for (name, tensor), part in pairs}
