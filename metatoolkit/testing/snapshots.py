"""What a call must leave alone, before and after it."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor

from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import place, portable
from metatoolkit.state import InnerState
from metatoolkit.testing.conformance import expect


def snapshot(problem: BilevelProblem, state: InnerState) -> dict[str, Any]:
    """Copy all that a call must leave alone.

    Args:
        problem: The problem.
        state: The state that the call is given.
    """
    modules = [problem.model, problem.meta]
    parameters = [p for module in modules for p in module.parameters()]
    generators = portable(place())
    buffers = [b for module in modules for b in module.buffers()]
    return {
        "parameters": [p.detach().clone() for p in parameters],
        "identities": [id(p) for p in parameters],
        "buffers": [b.clone() for b in buffers],
        "gradients": [p.grad for p in parameters],
        "modes": [s.training for module in modules for s in module.modules()],
        "requires_grad": [p.requires_grad for p in parameters],
        "versions": [t._version for t in [*parameters, *buffers]],
        "state": [t.clone() for t in [*state.tensors(), *state.buffers.values()]],
        "random": generators["torch"],
        "random of Python": generators["python"],
        "random of NumPy": pickle.dumps(generators["numpy"]),
    }


def equal(one: Any, other: Any) -> bool:
    """Return whether two parts of a snapshot are the same.

    Args:
        one: A part.
        other: The same part of another.
    """
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def expect_unchanged(before: dict[str, Any], problem: BilevelProblem, state: InnerState) -> None:
    """Raise unless everything is as it was.

    Args:
        before: A snapshot.
        problem: The problem.
        state: The state that the call was given.

    Raises:
        Unmet: The part that changed is named.
    """
    for part, now in snapshot(problem, state).items():
        expect(equal(before[part], now), f"{part} of problem and state as before", "others")
