"""The guided variant of EvoGrad: two copies along the validation gradient, none at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import (
    Cost,
    Hypergradient,
    add_gradients,
    check_finite,
    fill_gradients,
)
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.products import Adjoint, loss_gradient
from metatoolkit.hypergradients.replay_check import evaluate_again, repeat_once
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors


@dataclasses.dataclass(frozen=True)
class Guide:
    """The copies θ ± σ d with d the unit vector along the gradient g of the outer loss at θ.

    With the weights w = softmax(−ℓ/τ) of the copies' training losses, θ⁺ = θ + σ (w₊ − w₋) d and
    ⟨g, θ₊ − θ⁺⟩ = 2 w₋ σ ‖g‖, so that EvoGrad's sum is c (∂ℓ₊/∂λ − ∂ℓ₋/∂λ) with
    c = −2 w₊ w₋ σ ‖g‖ / τ. For small σ it is −(σ²/τ) ∂²ℓ/∂λ∂θ · g, the one-step hypergradient of
    plain SGD with the learning rate σ²/τ and the outer gradient at θ. What a derivative
    takes for a constant (see :class:`HeldConstants`) is common to both copies, as are the masks.

    Args:
        names: Inner parameters to perturb.
        sigma: Norm σ of the perturbation.
        temperature: Temperature τ of the softmax.
        factor: Factor of what flows through the training loss.
    """

    names: Sequence[str]
    sigma: float
    temperature: float
    factor: float

    def estimate(
        self,
        problem: BilevelProblem,
        state: InnerState,
        batch: Any,
        valid_batch: Any,
        given: BilevelProblem,
    ) -> Hypergradient:
        """Return the guided estimate. Cost: the outer loss, 3 F, and a pass for each copy.

        Args:
            problem: The bilevel problem, as the copies take it.
            state: Detached state, returned as it is.
            batch: Training batch on which both copies are scored.
            valid_batch: Batch for the outer loss.
            given: The problem that the user gave.

        Raises:
            ConfigurationError: The perturbation is lost in the rounding of the parameters.
        """
        meta = problem.meta_leaves()
        names, leaves = list(meta), list(meta.values())
        valid_loss, direction, norm, direct = self._direction(problem, state, meta, valid_batch)
        losses, sides = [], []
        copies = self._copies(state, direction)
        for loss in self._losses(problem, state, copies, meta, batch):
            sides.append(loss_gradient(loss, leaves))
            losses.append(loss.detach())
        again = (copies[0], meta, state.buffers, batch, fold_in(state.key, state.step))
        repeat_once(given, losses[0], lambda: evaluate_again(problem, "train_loss", again))
        values = torch.stack(losses)
        check_finite({"the training loss of a perturbed copy": values})
        values = values.to(norm.dtype)
        weights = self._weights(values)
        coefficient = (-2 * self.factor * self.sigma / self.temperature) * weights.prod() * norm
        # A function with a backward pass of its own may reach λ from one of the copies alone.
        gaps = add_gradients(names, sides[0], [None if g is None else -g for g in sides[1]])
        through = [None if g is None else (coefficient * g).to(g.dtype) for g in gaps.values()]
        total = add_gradients(names, direct, through)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(forward=3, backward=3),
            details={
                "weights": weights,
                "coefficients": torch.stack([coefficient, -coefficient]),
                "train_losses": values,
            },
        )

    def objective(
        self,
        problem: BilevelProblem,
        state: InnerState,
        batch: Any,
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return L(θ, λ) + r ⟨g, θ⁺(λ) − θ⟩ with the factor r, and g and d those of the present λ.

        Args:
            problem: The bilevel problem.
            state: Detached state.
            batch: Training batch.
            valid_batch: Batch for the outer loss.
            meta: Meta-parameters by name.
        """
        present = problem.meta_leaves()
        _, direction, norm, _ = self._direction(problem, state, present, valid_batch)
        with torch.no_grad():
            copies = self._copies(state, direction)
            losses = [loss.detach() for loss in self._losses(problem, state, copies, meta, batch)]
        weights = self._weights(torch.stack(losses).to(norm.dtype))
        shift = self.factor * self.sigma * (weights[0] - weights[1]) * norm
        return outer_loss(problem, state, meta, valid_batch) + shift

    def _direction(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, valid_batch: Any
    ) -> tuple[Tensor, Tensors, Tensor, Adjoint]:
        """Return the outer loss, d, ‖g‖ and the direct gradient in λ."""
        loss, adjoint, direct = finite_outer_gradient(problem, state, meta, valid_batch)
        found = zip(state.parameters, adjoint, strict=False)
        outer = {name: g for name, g in found if g is not None and name in self.names}
        dtype = torch.promote_types(loss.dtype, torch.float32)
        norm = torch.zeros((), dtype=dtype, device=loss.device)
        if outer:
            parts = [torch.linalg.vector_norm(g, dtype=dtype) for g in outer.values()]
            norm = torch.linalg.vector_norm(torch.stack(parts))
        inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
        return loss, {name: inverse * g for name, g in outer.items()}, norm, direct

    def _copies(self, state: InnerState, direction: Tensors) -> list[Tensors]:
        copies = []
        for sign in (1.0, -1.0):
            copies.append(
                {
                    name: tensor + sign * self.sigma * direction[name]
                    if name in direction
                    else tensor
                    for name, tensor in state.parameters.items()
                }
            )
        same = [(copies[0][n] == copies[1][n]).all() for n in direction]
        moving = [(d != 0).any() for d in direction.values()]
        if direction and bool(torch.stack(same).all() & torch.stack(moving).any()):
            dtype = str(next(iter(direction.values())).dtype).removeprefix("torch.")
            raise ConfigurationError(
                f"sigma is {self.sigma}, and a perturbation of that norm is lost in the rounding "
                f"of {dtype} parameters; raise sigma."
            )
        return copies

    @staticmethod
    def _losses(
        problem: BilevelProblem,
        state: InnerState,
        copies: list[Tensors],
        meta: Tensors,
        batch: Any,
    ) -> Iterator[Tensor]:
        """Yield both losses with graphs in λ, with the masks of the base step."""
        key = fold_in(state.key, state.step)
        # Gradients in θ, which would tell what depends on it, are not taken here.
        held = HeldConstants(everything=True)
        for holding, copy in zip((held.recording, held.replaying), copies, strict=True):
            with torch.enable_grad():
                loss, _ = holding(problem).evaluate_train(copy, meta, state.buffers, batch, key)
            yield loss

    def _weights(self, losses: Tensor) -> Tensor:
        return torch.softmax(-losses / self.temperature, dim=0)
