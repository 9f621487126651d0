"""The result of a traced call, and whether two results are the same to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.call_layout import Call
from metatoolkit.hypergradients.fingerprints import PLAIN
from metatoolkit.randomness.traced import StepNumber
from metatoolkit.state import InnerState, Tensors

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Hypergradient

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_COARSE = 4e-2


class Outputs:
    """Tensors that a graph returns, each known by its number.

    Args:
        first: The first of them.

    Attributes:
        tensors: All of them.
    """

    def __init__(self, first: Tensor) -> None:
        self.tensors = [first]

    def add(self, tensor: Tensor) -> int:
        """Take in a tensor, and return its number.

        Args:
            tensor: The tensor.
        """
        self.tensors.append(tensor.detach())
        return len(self.tensors) - 1

    def named(self, tensors: Tensors) -> dict[str, int]:
        """Take in tensors, and return their numbers by name.

        Args:
            tensors: Tensors by name.
        """
        return {name: self.add(tensor) for name, tensor in tensors.items()}


class TracedResult:
    """A hypergradient whose tensors are numbers of outputs.

    Args:
        traced: The hypergradient as it was traced.
        first: Number of the first step of that call.
        outputs: Takes its tensors.
        told: Tensors by name that the evaluation has set on the problem.

    Raises:
        UnsupportedError: It holds something beside tensors and plain values.
    """

    def __init__(self, traced: Hypergradient, first: int, outputs: Outputs, told: Tensors) -> None:
        state = traced.state
        self._gradient = outputs.named(traced.gradient)
        self._valid_loss = outputs.add(traced.valid_loss)
        self._parameters = outputs.named(state.parameters)
        self._buffers = outputs.named(state.buffers)
        self._optimizer = {slot: outputs.named(values) for slot, values in state.optimizer.items()}
        step: Any = state.step
        self._steps: int = step.offset if type(step) is StepNumber else step - first
        self._missed = dict(state.missed)
        self._details: dict[str, Any] = {}
        self._slots: dict[str, int] = {}
        for name, value in traced.details.items():
            if isinstance(value, Tensor):
                self._slots[name] = outputs.add(value)
            elif type(value) in PLAIN:
                self._details[name] = value
            else:
                raise UnsupportedError(f"it returns a {type(value).__name__} as {name!r}")
        self._told = outputs.named(told)
        self._cost, self._kind = traced.cost, type(traced)

    def filled(self, call: Call, outputs: Sequence[Tensor]) -> Hypergradient:
        """Return the hypergradient of a call.

        Args:
            call: The call.
            outputs: What the graph returned.
        """

        def tensors(places: Mapping[str, int]) -> Tensors:
            return {name: outputs[place] for name, place in places.items()}

        for name, place in self._told.items():
            setattr(call.problem, name, outputs[place])
        return self._kind(
            gradient=tensors(self._gradient),
            valid_loss=outputs[self._valid_loss],
            state=InnerState(
                parameters=tensors(self._parameters),
                buffers=tensors(self._buffers),
                optimizer={slot: tensors(values) for slot, values in self._optimizer.items()},
                step=call.state.step + self._steps,
                key=call.state.key,
                missed=dict(self._missed),
            ),
            cost=self._cost,
            details={**self._details, **tensors(self._slots)},
        )


def agree(expected: Hypergradient, found: Hypergradient) -> bool:
    """Return whether two results are the same to rounding, each part by its norm.

    That is to 1e-5 in float32 and 1e-10 in float64.

    Args:
        expected: One result.
        found: The other.
    """
    pairs = [
        (expected.gradient, found.gradient),
        ({"": expected.valid_loss}, {"": found.valid_loss}),
        (expected.state.parameters, found.state.parameters),
        (expected.state.buffers, found.state.buffers),
    ]
    pairs += [(own, found.state.optimizer[s]) for s, own in expected.state.optimizer.items()]
    same = expected.state.step == found.state.step and expected.state.missed == found.state.missed
    return same and all(_near(*pair) for pair in pairs)


def _near(expected: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    if expected.keys() != found.keys():
        return False
    if not expected:
        return True
    gap = size = 0.0
    tolerance = 0.0
    for name, tensor in expected.items():
        kind = torch.promote_types(tensor.dtype, torch.float64)
        gap += float((tensor.to(kind) - found[name].to(kind)).abs().square().sum())
        size += float(tensor.to(kind).abs().square().sum())
        if tensor.is_floating_point() or tensor.is_complex():
            real = tensor.dtype.to_real()
            tolerance = max(tolerance, _TOLERANCE.get(real, _COARSE))
    return bool(gap**0.5 <= tolerance * size**0.5)
