"""GuidedEvoGrad: two candidates along the gradient of the outer loss, none at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import (
    Cost,
    Hypergradient,
    Traits,
    add_gradients,
    check_finite,
    fill_gradients,
)
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.prefix import Prefix
from metatoolkit.hypergradients.products import Adjoint, loss_gradient
from metatoolkit.hypergradients.recording import recording
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.replay_check import evaluate_again, repeat_once
from metatoolkit.hypergradients.replaying import replaying
from metatoolkit.hypergradients.scored_candidates import ScoredCandidates
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class GuidedEvoGrad(ScoredCandidates):
    """EvoGrad with candidates along the gradient of the outer loss, instead of at random.

    The two candidates are θ ± σ d with d the unit vector along the gradient g of the outer loss at
    θ. With the weights w = softmax(−ℓ/τ) of their training losses ℓ on one batch,
    θ⁺ = θ + σ (w₊ − w₋) d and ⟨g, θ₊ − θ⁺⟩ = 2 w₋ σ ‖g‖, so that EvoGrad's sum (see
    :class:`EvoGrad`), with g in the place of the outer gradient at θ⁺, is c (∂ℓ₊/∂λ − ∂ℓ₋/∂λ) with
    c = −2 w₊ w₋ σ ‖g‖ / τ. For small σ it is −(σ²/τ) ∂²ℓ/∂λ∂θ · g, the one-step hypergradient of
    plain SGD with the learning rate σ²/τ and the outer gradient at θ; ``rescale`` sets that
    learning rate. Nothing is random. What a derivative takes for a constant (see
    :class:`HeldConstants`) is common to both candidates, as are dropout masks.

    Cost with F one forward pass: 5 F with λ in the loss alone, at most 9 F.

    Args:
        sigma: Norm σ of the perturbation.
        temperature: Temperature τ of the softmax.
        rescale: Learning rate of the one-step update whose hypergradient is estimated; ``None``
            leaves σ²/τ.
        perturb: Name patterns of the inner parameters to perturb; ``None`` for all.
        prefix: Function ``(model, meta, batch) -> features`` that depends neither on λ nor on
            perturbed parameters; the losses must take the features as well as a batch, which
            base steps give them. Integers that it makes of either are beyond what is checked.

    Raises:
        ConfigurationError: A number is out of range, or ``perturb`` or ``prefix`` is of another
            kind.

    Example:
        >>> f"{GuidedEvoGrad(sigma=1e-2, temperature=0.05).learning_rate:.0e}"
        '2e-03'
    """

    traits = Traits(
        kind="approximate",
        computes="for small σ, derivative through one SGD step, at the θ before it",
        assumes="λ in the model or the training loss; first derivatives only",
        passes="5 F to 9 F",
        memory="one copy of θ and the graph of one pass",
        paper="Bohdal et al. 2021, arXiv 2106.10575",
    )

    def __init__(
        self,
        sigma: float = 1e-3,
        temperature: float = 0.05,
        rescale: float | None = None,
        perturb: Sequence[str] | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        super().__init__(sigma, temperature, rescale, perturb, prefix)

    @property
    @override
    def _own_learning_rate(self) -> float:
        return self.sigma**2 / self.temperature

    @override
    def _estimate(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        valid_batch: Any,
        given: BilevelProblem,
    ) -> Hypergradient:
        names, leaves = list(meta), list(meta.values())
        valid_loss, direction, norm, direct = self._direction(problem, state, meta, valid_batch)
        losses, sides = [], []
        candidates = self._candidates(state, direction)
        for loss in self._losses(problem, state, candidates, meta, batch):
            sides.append(loss_gradient(loss, leaves))
            losses.append(loss.detach())
        again = (candidates[0], meta, state.buffers, batch, fold_in(state.key, state.step))
        repeat_once(given, losses[0], lambda: evaluate_again(problem, "train_loss", again))
        values = torch.stack(losses)
        check_finite({"the training loss of a candidate": values})
        values = values.to(norm.dtype)
        weights = self._weights(values)
        coefficient = (-2 * self._factor * self.sigma / self.temperature) * weights.prod() * norm
        # A function with a backward pass of its own may reach λ from one of the candidates alone.
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

    @override
    def _objective(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> Tensor:
        """Return L(θ, λ) + r ⟨g, θ⁺(λ) − θ⟩ with the factor r; g and d are of the present λ."""
        present = problem.meta_leaves()
        _, direction, norm, _ = self._direction(problem, state, present, valid)
        with torch.no_grad():
            candidates = self._candidates(state, direction)
            losses = [
                loss.detach() for loss in self._losses(problem, state, candidates, meta, batch)
            ]
        weights = self._weights(torch.stack(losses).to(norm.dtype))
        shift = self._factor * self.sigma * (weights[0] - weights[1]) * norm
        return outer_loss(problem, state, meta, valid) + shift

    def _direction(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, valid_batch: Any
    ) -> tuple[Tensor, Tensors, Tensor, Adjoint]:
        """Return the outer loss, d, ‖g‖ and the direct gradient in λ."""
        names = self._names(state.parameters)
        loss, adjoint, direct = finite_outer_gradient(problem, state, meta, valid_batch)
        found = zip(state.parameters, adjoint, strict=False)
        outer = {name: g for name, g in found if g is not None and name in names}
        dtype = torch.promote_types(loss.dtype, torch.float32)
        norm = torch.zeros((), dtype=dtype, device=loss.device)
        if outer:
            parts = [torch.linalg.vector_norm(g, dtype=dtype) for g in outer.values()]
            norm = torch.linalg.vector_norm(torch.stack(parts))
        inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
        return loss, {name: inverse * g for name, g in outer.items()}, norm, direct

    def _candidates(self, state: InnerState, direction: Tensors) -> list[Tensors]:
        candidates = []
        for sign in (1.0, -1.0):
            candidates.append(
                {
                    name: tensor + sign * self.sigma * direction[name]
                    if name in direction
                    else tensor
                    for name, tensor in state.parameters.items()
                }
            )
        same = [(candidates[0][n] == candidates[1][n]).all() for n in direction]
        moving = [(d != 0).any() for d in direction.values()]
        if direction and bool(torch.stack(same).all() & torch.stack(moving).any()):
            dtype = str(next(iter(direction.values())).dtype).removeprefix("torch.")
            raise ConfigurationError(
                f"sigma is {self.sigma}, and a perturbation of that norm is lost in the rounding "
                f"of {dtype} parameters; raise sigma."
            )
        return candidates

    @staticmethod
    def _losses(
        problem: BilevelProblem,
        state: InnerState,
        candidates: list[Tensors],
        meta: Tensors,
        batch: Any,
    ) -> Iterator[Tensor]:
        """Yield both losses with graphs in λ, with the masks of the base step."""
        key = fold_in(state.key, state.step)
        # Gradients in θ, which would tell what depends on it, are not taken here.
        held = HeldConstants(everything=True)
        for holding, candidate in zip((recording, replaying), candidates, strict=True):
            at = (candidate, meta, state.buffers, batch, key)
            with torch.enable_grad():
                loss, _ = holding(problem, held).evaluate_train(*at)
            yield loss

    def _weights(self, losses: Tensor) -> Tensor:
        return torch.softmax(-losses / self.temperature, dim=0)
