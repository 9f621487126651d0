"""One parameter with its optimizer state: how it begins and moves, and how complex ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ShapeError, UnsupportedError
from metatoolkit.state import InnerState, Tensors

Update = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""The update of an inner learner: one parameter and its slots after a step."""


def zero_slots(parameters: Tensors, *slots: str) -> dict[str, Tensors]:
    """Return optimizer state of zeros, one tensor for each slot and parameter.

    Args:
        parameters: Inner parameters by name.
        slots: Names of the slots.
    """
    return {slot: {name: torch.zeros_like(p) for name, p in parameters.items()} for slot in slots}


def number_slots(parameters: Tensors, start: float, settings: Iterable[Any]) -> Tensors:
    """Return one number for each parameter, in its real type but float32 at least.

    Args:
        parameters: Inner parameters by name.
        start: The number before the first step.
        settings: Hyper-parameters that it will be computed from. Where one is a tensor of entries,
            there is one number for each entry of a parameter.
    """
    entries = any(isinstance(value, Tensor) and value.dim() > 0 for value in settings)
    return {
        name: torch.full(
            p.shape if entries else (),
            start,
            dtype=torch.promote_types(p.dtype.to_real(), torch.float32),
            device=p.device,
        )
        for name, p in parameters.items()
    }


def slots_of(state: InnerState, name: str) -> dict[str, Tensor]:
    """Return the optimizer state of one parameter by slot.

    Args:
        state: Any inner state.
        name: Name of the parameter.
    """
    return {slot: values[name] for slot, values in state.optimizer.items() if name in values}


def update_parameter(
    update: Update,
    name: str,
    parameter: Tensor,
    gradient: Tensor,
    slots: dict[str, Tensor],
    hyperparameters: dict[str, float | Tensor],
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a parameter and its slots after an update, in the types that they had.

    A complex parameter moves as real and imaginary parts do, in a last dimension of their own.

    Args:
        update: That of an inner learner.
        name: Name of the parameter, for the message.
        parameter: The parameter, of any shape.
        gradient: Its gradient, of the same shape.
        slots: Its optimizer state by slot name; real slots of a complex parameter are numbers that
            both of its parts share.
        hyperparameters: Values that hold for this parameter at this step.
        step: Number of steps that this parameter took before this one.

    Raises:
        ShapeError: A hyper-parameter is a tensor that does not expand to the parameter's shape, or
            to that of a slot.
    """
    if hyperparameters.get("maximize"):
        gradient = -gradient
    paired = parameter.is_complex()
    if paired:
        parameter, gradient = _as_pairs(parameter), _as_pairs(gradient)
        real = {slot for slot, tensor in slots.items() if not tensor.is_complex()}
        slots = {s: _beside_pairs(t) if s in real else _as_pairs(t) for s, t in slots.items()}
        hyperparameters = {n: _beside_pairs(value) for n, value in hyperparameters.items()}
    moved, updated = update(parameter, gradient, slots, hyperparameters, step)
    kept = moved.dtype == parameter.dtype
    if moved.shape != parameter.shape or (not kept and moved.is_complex()):
        what = "complex values" if moved.is_complex() else f"one of shape {tuple(moved.shape)}"
        raise ShapeError(
            f"a step turns {name!r} of shape {tuple(parameter.shape)} into {what}: a "
            "hyper-parameter that is a tensor must be real, and 0-d or expand to the shape of each "
            "parameter; reshape it, or give it to a group."
        )
    # A hyper-parameter of higher precision must not carry over to the state.
    if not kept:
        moved = moved.to(parameter.dtype)
    for slot, tensor in updated.items():
        if tensor.shape != slots[slot].shape:
            raise ShapeError(
                f"a step turns the {slot} of {name!r}, which is of shape "
                f"{tuple(slots[slot].shape)}, into one of shape {tuple(tensor.shape)}: give "
                "hyper-parameters that differ between entries as tensors, and not by functions."
            )
        if tensor.dtype != slots[slot].dtype:
            updated = updated | {slot: tensor.to(slots[slot].dtype)}
    if paired:
        moved = torch.view_as_complex(moved)
        updated = {
            slot: _without_pairs(tensor) if slot in real else torch.view_as_complex(tensor)
            for slot, tensor in updated.items()
        }
    return moved, updated


def refuse_complex(name: str, parameter: Tensor) -> None:
    """Raise where a parameter is complex, so that its update is no factor for each entry.

    Args:
        name: Name of the parameter.
        parameter: The parameter.

    Raises:
        UnsupportedError: It is complex.
    """
    if parameter.is_complex():
        raise UnsupportedError(
            f"{name!r} is complex: how it moves with its gradient is no factor for each entry. Use "
            "Unrolled, or keep real parameters and view them with torch.view_as_complex."
        )


def _as_pairs(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj())


def _beside_pairs(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) and value.dim() > 0 else value


def _without_pairs(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1) if tensor.dim() > 0 else tensor
