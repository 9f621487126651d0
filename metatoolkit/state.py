"""The inner state: everything that one inner step reads and returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
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
            the shape of the parameter, or a number (0-d) for all of it.
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
        """Return the tensors that a hypergradient flows through: parameters, then slots.

        Slots of integers are none of them.
        """
        slots = [tensor for slot in self.optimizer.values() for tensor in slot.values()]
        return [*self.parameters.values(), *filter(_flows, slots)]

    def with_tensors(self, tensors: list[Tensor]) -> InnerState:
        """Return this state with the tensors of :meth:`tensors`, in the same order, exchanged.

        Args:
            tensors: As many tensors as :meth:`tensors` returns.
        """
        remaining = iter(tensors)
        parameters = {name: next(remaining) for name in self.parameters}
        optimizer = {
            slot: {
                name: next(remaining) if _flows(tensor) else tensor
                for name, tensor in values.items()
            }
            for slot, values in self.optimizer.items()
        }
        return self.replaced(parameters=parameters, optimizer=optimizer)

    def map(self, function: Callable[[Tensor], Tensor]) -> InnerState:
        """Return this state with ``function`` applied to each tensor, buffers included.

        Args:
            function: Called with one tensor, returns one tensor.
        """
        return self.replaced(
            parameters={name: function(tensor) for name, tensor in self.parameters.items()},
            optimizer={
                slot: {name: function(tensor) for name, tensor in values.items()}
                for slot, values in self.optimizer.items()
            },
            buffers={name: function(buffer) for name, buffer in self.buffers.items()},
        )

    def replaced(self, **fields: Any) -> InnerState:
        """Return this state with some fields exchanged.

        It is ``dataclasses.replace``, whose checks would be a part of the time of a small step.

        Args:
            fields: New values by the names of their fields.
        """
        state = object.__new__(type(self))
        vars(state).update(vars(self), **fields)
        return state

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


def _flows(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def tree_map(
    function: Callable[[Tensor], Tensor],
    tree: Any,
    own: Callable[[Any], bool] | None = None,
    on_object: Callable[[Any], Any] | None = None,
) -> Any:
    """Apply ``function`` to every tensor of a batch.

    Args:
        function: Called with one tensor.
        tree: A tensor, or any nesting of mappings, lists, tuples, named tuples and dataclasses,
            and of what is registered as a node of a pytree.
        own: Tells of a node that it goes to ``on_object`` as a whole.
        on_object: Called with such nodes and with what is neither tensor nor container; ``None``
            lets it stay as it is.

    Returns:
        A tree of the same structure; containers are new ones.
    """

    def on_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        filled: Any
        if own is None or not own(leaf):
            if isinstance(leaf, Mapping):
                filled = copy.copy(leaf)
                for key, value in leaf.items():
                    filled[key] = walk(value)
                return filled
            if isinstance(leaf, list):
                filled = copy.copy(leaf)
                filled[:] = [walk(value) for value in leaf]
                return filled
            if isinstance(leaf, tuple):
                return tuple.__new__(type(leaf), [walk(value) for value in leaf])
            if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                filled = copy.copy(leaf)
                for field in dataclasses.fields(leaf):
                    # A frozen one, or one that derives a field from others, is a copy as well.
                    object.__setattr__(filled, field.name, walk(getattr(leaf, field.name)))
                return filled
        return leaf if on_object is None else on_object(leaf)

    def walk(node: Any) -> Any:
        return torch.utils._pytree.tree_map(on_leaf, node, is_leaf=own)

    return walk(tree)


def describe(tree: Any) -> str:
    """Return the shapes and types of a batch in one line, for error messages.

    Args:
        tree: Any batch.
    """
    parts: list[str] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            parts.append(f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}")
        else:
            parts.append(type(leaf).__name__)
        return leaf

    tree_map(note, tree, on_object=note)
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


def without_graph(tensor: Tensor) -> Tensor:
    """Return a tensor that requires no gradient: itself, where it is one.

    Args:
        tensor: Any tensor.
    """
    return tensor.detach() if tensor.requires_grad else tensor


def with_leaves(state: InnerState, create_graph: bool) -> InnerState:
    """Return a state whose parameters can be differentiated in.

    Args:
        state: Any state.
        create_graph: Whether those that require a gradient keep their graph.
    """
    if create_graph and all([tensor.requires_grad for tensor in state.parameters.values()]):
        return state
    parameters = {
        name: tensor
        if create_graph and tensor.requires_grad
        # A leaf of its own: the gradient is taken here even where no graph is asked for.
        else tensor.detach().requires_grad_()
        for name, tensor in state.parameters.items()
    }
    return state.replaced(parameters=parameters)
