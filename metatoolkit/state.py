"""The inner state: everything that one inner step reads and returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class InnerState:
    """State of the inner optimization, a value that no step changes in place.

    Attributes:
        parameters: Inner parameters by their names in ``model.named_parameters()``.
        buffers: Buffers of the model (``"model."`` before the name) and of the meta-parameter
            module (``"meta."`` before it).
        optimizer: State of the inner optimizer: slot name, then parameter name, then a tensor of
            the shape of the parameter.
        step: Number of inner steps taken since ``init``.
        key: Random key of the trajectory; step number t draws from ``fold_in(key, t)``.
        missed: Number of these steps that skipped a parameter, since the graph of the training
            loss did not reach it; parameters that took every step may be left out.
    """

    parameters: Tensors
    buffers: Tensors
    optimizer: dict[str, Tensors]
    step: int
    key: int
    missed: dict[str, int] = dataclasses.field(default_factory=dict)

    def steps_of(self, name: str) -> int:
        """Return the number of steps that a parameter took, which is what its slots tell of.

        Args:
            name: Name of the parameter.
        """
        return self.step - self.missed.get(name, 0)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that a hypergradient flows through: parameters, then slots."""
        slots = [tensor for slot in self.optimizer.values() for tensor in slot.values()]
        return [*self.parameters.values(), *slots]

    def with_tensors(self, tensors: list[Tensor]) -> InnerState:
        """Return this state with the tensors of :meth:`tensors`, in the same order, exchanged.

        Args:
            tensors: As many tensors as :meth:`tensors` returns.
        """
        remaining = iter(tensors)
        parameters = {name: next(remaining) for name in self.parameters}
        optimizer = {
            slot: {name: next(remaining) for name in values}
            for slot, values in self.optimizer.items()
        }
        return dataclasses.replace(self, parameters=parameters, optimizer=optimizer)

    def map(self, function: Callable[[Tensor], Tensor]) -> InnerState:
        """Return this state with ``function`` applied to each tensor, buffers included.

        Args:
            function: Called with one tensor, returns one tensor.
        """
        state = self.with_tensors([function(tensor) for tensor in self.tensors()])
        buffers = {name: function(buffer) for name, buffer in self.buffers.items()}
        return dataclasses.replace(state, buffers=buffers)

    def detach(self) -> InnerState:
        """Return this state cut from any autograd graph; no memory is copied."""
        return self.map(Tensor.detach)

    def clone(self) -> InnerState:
        """Return a copy that shares no memory with this state."""
        return self.map(lambda tensor: tensor.detach().clone())

    def to(self, *args: Any, **kwargs: Any) -> InnerState:
        """Return this state on another device, or with another floating-point type.

        Args:
            args: Passed on to ``Tensor.to``; a dtype applies to floating-point tensors only.
            kwargs: Likewise.
        """
        others = {name: value for name, value in kwargs.items() if name != "dtype"}
        dtype = kwargs.get("dtype")
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, Tensor):
                dtype, others["device"] = value.dtype, value.device
            elif not isinstance(value, bool):
                others["device"] = value
        flags = [value for value in args if isinstance(value, bool)]
        others |= dict(zip(("non_blocking", "copy"), flags, strict=False))

        def move(tensor: Tensor) -> Tensor:
            own = dtype if tensor.is_floating_point() else None
            if dtype is not None and tensor.is_complex():
                own = dtype.to_complex()
            return tensor.to(dtype=own, **others)

        return self.map(move)

    def state_dict(self) -> dict[str, Any]:
        """Return a plain dictionary that ``torch.save`` stores and ``weights_only`` loads."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @staticmethod
    def from_state_dict(saved: dict[str, Any]) -> InnerState:
        """Return the state that :meth:`state_dict` described.

        Args:
            saved: What :meth:`state_dict` returned.
        """
        return InnerState(**saved)


def tree_map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor of a batch.

    Args:
        function: Called with one tensor.
        tree: A tensor, or any nesting of dicts, lists, tuples and named tuples of tensors; what
            is no tensor stays as it is.

    Returns:
        A tree of the same structure.
    """
    return torch.utils._pytree.tree_map(
        lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree
    )


def describe(tree: Any) -> str:
    """Return the shapes and types of a batch in one line, for error messages.

    Args:
        tree: Any batch.
    """
    leaves = torch.utils._pytree.tree_leaves(tree)
    parts = [
        f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        if isinstance(leaf, Tensor)
        else type(leaf).__name__
        for leaf in leaves
    ]
    return ", ".join(parts) or "empty"


def require_grad(tensors: Tensors) -> Tensors:
    """Return tensors of which those that require no gradient are exchanged for leaves that do.

    Args:
        tensors: Tensors by name; leaves share their memory.
    """
    return {
        name: tensor
        if tensor.requires_grad or not tensor.is_floating_point()
        # As a view: what a loss detaches is recorded, and this is none of it.
        else tensor.view_as(tensor).requires_grad_()
        for name, tensor in tensors.items()
    }
