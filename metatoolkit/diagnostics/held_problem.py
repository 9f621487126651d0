"""A problem whose losses hold what a derivative takes for a constant, from call to call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.recording import recording
from metatoolkit.hypergradients.replaying import replaying
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import Tensors, require_grad, tree_map


class HeldProblem(BilevelProblem):
    """Evaluates the losses of a problem as estimators do, at one λ and at others.

    A derivative takes for constants what :class:`HeldConstants` holds, such as what a loss
    detaches, and the buffers that a step leaves. A difference of evaluations would see them move
    with λ. So they are recorded in a first series of evaluations, and the evaluations of later
    series are given what those of the first had, in order; beyond its end the last, as at a fixed
    point. The losses run with gradients enabled and
    tensors that require them, as when they are differentiated.

    It shares the modules of the problem.

    Args:
        problem: The problem.
        holds: Whether anything is held; an estimator that differentiates nothing sees all move.
        last: Whether the last evaluation of the first series is what all later ones are given.
    """

    def __init__(self, problem: BilevelProblem, holds: bool, last: bool) -> None:
        vars(self).update(vars(problem))
        # Evaluations beyond those of a series would be recorded as parts of it.
        self.micro_batched = problem.micro_batched.unchecked()
        self._holds = holds
        self._last = last
        self._recording = True
        self._kept: dict[str, list[Any]] = {}
        self._position: dict[str, int] = {}
        self.train_loss = self._held("train_loss", problem.train_loss)
        self.valid_loss = self._held("valid_loss", problem.valid_loss)

    def begin(self, recording: bool) -> None:
        """Begin a series of evaluations.

        Args:
            recording: Whether it is the one that is recorded.
        """
        self._recording = recording
        self._position = {}
        if recording:
            self._kept = {}

    @override
    def evaluate_train(
        self, parameters: Tensors, meta: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> tuple[Tensor, Tensors]:
        """Return the inner loss, which records or is given what it holds, and the buffers."""
        leaves = (require_grad(parameters), require_grad(meta))
        with torch.enable_grad():
            value, after = super().evaluate_train(*leaves, buffers, batch, key)
        after = self._keep("buffers", after) if self._holds else after
        return (value if torch.is_grad_enabled() else value.detach()), after

    @override
    def evaluate_valid(
        self, parameters: Tensors, meta: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> Tensor:
        """Return the outer loss, likewise."""
        leaves = (require_grad(parameters), require_grad(meta))
        with torch.enable_grad():
            value = super().evaluate_valid(*leaves, buffers, batch, key)
        return value if torch.is_grad_enabled() else value.detach()

    @override
    def evaluate_meta(self, function: Callable[..., Any], meta: Tensors) -> Any:
        """Call a function of the meta-parameter module, likewise."""
        held = self._held("meta", function)
        if torch.is_grad_enabled() and all(tensor.requires_grad for tensor in meta.values()):
            return super().evaluate_meta(held, meta)
        with torch.enable_grad():
            found = super().evaluate_meta(held, require_grad(meta))
        return tree_map(Tensor.detach, found)

    def _held(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that records or is given what it holds constant."""

        def held(*arguments: Any) -> Any:
            if not self._holds:
                return function(*arguments)
            constants = self._keep(kind, HeldConstants())
            carrier = copy.copy(self)
            # Whatever the function is, it takes the place of the loss that is held.
            carrier.train_loss = lambda *_: function(*arguments)
            holding = recording if self._recording else replaying
            return holding(carrier, constants).train_loss(self.model, self.meta, None)

        return held

    def _keep(self, kind: str, value: Any) -> Any:
        """Record a value, or return the one that was recorded in its place."""
        kept = self._kept.setdefault(kind, [])
        if self._recording:
            if self._last:
                kept.clear()
            kept.append(value)
            return value
        position = self._position.get(kind, 0)
        self._position[kind] = position + 1
        return kept[min(position, len(kept) - 1)] if kept else value
