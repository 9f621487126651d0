"""The update of all parameters by one step, those that move alike at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from metatoolkit.inner.bundles import Bundle
from metatoolkit.inner.evaluated import Evaluated, are_numbers
from metatoolkit.inner.slots import Update, slots_of, update_parameter
from metatoolkit.state import InnerState, Tensors

LARGEST_BUNDLE = 2**16
"""Entries that are updated at once, since what is in between has the memory of all of them."""

LARGEST_WITH_GRAPH = 2**12
"""Entries of all parameters that are, at most, where a graph is built.

The graph of an operation on several tensors keeps each of them, even where their derivatives do not
need it.
"""


def updated_state(
    update: Update, state: InnerState, gradients: Tensors, resolved: Evaluated
) -> InnerState:
    """Return the state after an update with given gradients; its buffers stay as they are.

    A parameter without a gradient is skipped: value, slots and its own number of steps stay.

    Args:
        update: That of an inner learner.
        state: State before the step.
        gradients: Gradient of the training loss by parameter name, of some parameters or all.
        resolved: Returns the hyper-parameters that hold for a parameter, by its name.

    Raises:
        ShapeError: A hyper-parameter is a tensor that does not expand to a parameter's shape.
    """
    parameters = dict(state.parameters)
    optimizer = {slot: dict(tensors) for slot, tensors in state.optimizer.items()}
    missed = state.missed
    if resolved.common is not None and not missed and gradients.keys() == parameters.keys():
        alike = [([*parameters], resolved.common, state.step)]
    else:
        alike = _alike(state, gradients, resolved)
        skipped = [name for name in parameters if name not in gradients]
        missed = missed | {name: missed.get(name, 0) + 1 for name in skipped}
    for names, values, step in alike:
        together = len(names) > 1 and _can_be_bundled(update, values)
        parts = _parts(names, state.parameters) if together else [names]
        if len(parts) == len(names):
            parts, together = [names], False
        for part in parts:
            given = [state.parameters[name] for name in part]
            moves = [gradients[name] for name in part]
            if together and len(part) > 1 and not any(map(Tensor.is_complex, given)):
                held = {s: t for s, t in state.optimizer.items() if part[0] in t}
                slots = {slot: [tensors[name] for name in part] for slot, tensors in held.items()}
                moved, changed = _update_together(update, given, moves, slots, values, step)
                parameters.update(zip(part, moved, strict=True))
                for slot, tensors in changed.items():
                    optimizer[slot].update(zip(part, tensors, strict=True))
                continue
            for name, parameter, gradient in zip(part, given, moves, strict=True):
                own = slots_of(state, name) if optimizer else {}
                parameters[name], single = update_parameter(
                    update, name, parameter, gradient, own, values, step
                )
                for slot, tensor in single.items():
                    optimizer[slot][name] = tensor
    return state.replaced(
        parameters=parameters, optimizer=optimizer, step=state.step + 1, missed=missed
    )


def _alike(
    state: InnerState, gradients: Tensors, resolved: Evaluated
) -> list[tuple[list[str], dict[str, Any], int]]:
    """Return names of parameters that move by the same values, with these, in the same step."""
    found: dict[tuple[int, int], tuple[list[str], dict[str, Any], int]] = {}
    for name in state.parameters:
        if name in gradients:
            values, step = resolved(name), state.steps_of(name)
            found.setdefault((id(values), step), ([], values, step))[0].append(name)
    return [*found.values()]


def _parts(names: list[str], parameters: Tensors) -> list[list[str]]:
    """Cut names in parts whose parameters are small together, or a large one by itself."""
    sizes = [parameters[name].numel() for name in names]
    if torch.is_grad_enabled():
        return [names] if sum(sizes) <= LARGEST_WITH_GRAPH else [[name] for name in names]
    parts: list[list[str]] = []
    room = 0
    for name, size in zip(names, sizes, strict=True):
        if not parts or size > room:
            parts.append([])
            room = LARGEST_BUNDLE
        parts[-1].append(name)
        room -= size
    return parts


def _update_together(
    update: Callable[..., tuple[Any, dict[str, Any]]],
    parameters: list[Tensor],
    gradients: list[Tensor],
    slots: dict[str, list[Tensor]],
    hyperparameters: dict[str, float | Tensor],
    step: int,
) -> tuple[Sequence[Tensor], dict[str, Sequence[Tensor]]]:
    """Return several parameters and their slots after an update.

    Args:
        update: That of an inner learner that takes bundles.
        parameters: Real parameters, each of any shape.
        gradients: Gradient of each, of the same shape.
        slots: Their optimizer states by slot name, in the same order.
        hyperparameters: Numbers that hold for all of them at this step.
        step: Number of steps that each of them took before this one.
    """
    gradient = Bundle(gradients)
    if hyperparameters.get("maximize"):
        gradient = -gradient
    bundled = {slot: Bundle(tensors) for slot, tensors in slots.items()}
    moved, updated = update(Bundle(parameters), gradient, bundled, hyperparameters, step)
    return moved.tensors, {slot: bundle.tensors for slot, bundle in updated.items()}


def _can_be_bundled(update: Any, hyperparameters: dict[str, float | Tensor]) -> bool:
    """Return whether real parameters can be updated together.

    Args:
        update: That of an inner learner.
        hyperparameters: Values that hold for all of them.
    """
    return (
        getattr(update, "takes_bundles", False)
        # vmap has no rules for them.
        and _functorch.maybe_current_level() is None
        # It takes a choice between two tensors, entry by entry.
        and not hyperparameters.get("amsgrad")
        and are_numbers(hyperparameters)
    )
