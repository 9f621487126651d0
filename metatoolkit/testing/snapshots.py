"""What a call must leave alone, before and after it."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import place, portable
from metatoolkit.state import InnerState
from metatoolkit.testing.expectations import expect


def snapshot(problem: BilevelProblem, state: InnerState, batches: Any = ()) -> dict[str, Any]:
    """Copy all that a call must leave alone.

    Args:
        problem: The problem.
        state: The state that the call is given.
        batches: The batches that it is given.
    """
    modules = [problem.model, problem.meta]
    parts = [part for module in modules for part in module.modules()]
    data = [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
    parameters = [p for module in modules for p in module.parameters()]
    generators = portable(place())
    buffers = [b for module in modules for b in module.buffers()]
    given = [*state.tensors(), *state.buffers.values()]
    return {
        "parameters": [p.detach().clone() for p in parameters],
        "identities": [id(p) for p in parameters],
        "buffers": [b.clone() for b in buffers],
        "gradients": [None if p.grad is None else p.grad.clone() for p in parameters],
        "modes": [part.training for part in parts],
        "attributes and hooks": [_attributes(part) for part in parts],
        "requires_grad": [p.requires_grad for p in parameters],
        "versions": [t._version for t in [*parameters, *buffers]],
        "state": [t.clone() for t in given],
        "requires_grad of the state": [t.requires_grad for t in given],
        "batches": [t.clone() for t in data],
        "requires_grad of the batches": [t.requires_grad for t in data],
        "versions of the batches": [t._version for t in data],
        "random": generators["torch"],
        "random of Python": generators["python"],
        "random of NumPy": pickle.dumps(generators["numpy"]),
    }


def _attributes(module: nn.Module) -> dict[str, int]:
    """Return the names of a module's attributes, with the number of hooks and other entries."""
    return {
        name: len(value) if isinstance(value, dict | list) else 0
        for name, value in vars(module).items()
    }


def hold_gradients(problem: BilevelProblem) -> dict[Tensor, Tensor]:
    """Fill the ``.grad`` of all parameters that require one with 7, and return them.

    Args:
        problem: The problem.
    """
    held: dict[Tensor, Tensor] = {}
    for parameter in (*problem.model.parameters(), *problem.meta.parameters()):
        if parameter.requires_grad:
            held[parameter] = parameter.grad = torch.full_like(parameter, 7.0)
    return held


def equal(one: Any, other: Any) -> bool:
    """Return whether two parts of a snapshot are the same.

    Args:
        one: A part.
        other: The same part of another.
    """
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def expect_unchanged(
    before: dict[str, Any], problem: BilevelProblem, state: InnerState, batches: Any = ()
) -> None:
    """Raise unless everything is as it was.

    Args:
        before: A snapshot.
        problem: The problem.
        state: The state that the call was given.
        batches: The batches that it was given.

    Raises:
        Unmet: The part that changed is named.
    """
    for part, now in snapshot(problem, state, batches).items():
        expect(equal(before[part], now), f"{part} as before the call", "others")
