"""GuidedEvoGrad: two candidates along the gradient of the outer loss, none at random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

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
from metatoolkit.hypergradients.difference_radius import balanced_radius, rounding_unit
from metatoolkit.hypergradients.prefix import Prefix
from metatoolkit.hypergradients.products import Adjoint, loss_gradient
from metatoolkit.hypergradients.products import norm as norm_of
from metatoolkit.hypergradients.recording import recording
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.replay_check import evaluate_again, repeat_once
from metatoolkit.hypergradients.replaying import replaying
from metatoolkit.hypergradients.scored_candidates import ScoredCandidates
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors

# At τ = 50 |ℓ₊ − ℓ₋| the softmax takes a ten-thousandth of the scale.
_SPREAD = 50.0


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
    :class:`HeldConstants`) is for both candidates what it is at θ, as are dropout masks.

    With ``sigma="auto"`` each call has a σ at which truncation and rounding are about level (see
    :func:`balanced_radius`), and raises τ to 50 |ℓ₊ − ℓ₋| where that is more: c falls with
    4 w₊ w₋ = sech²((ℓ₊ − ℓ₋)/2τ) as the softmax saturates, which is then above 0.9999. The scale is
    that of a learning rate of 1, or of ``rescale``, whatever σ and τ are.

    The details tell ``sigma``, ``temperature``, ``saturation``, which is 1 − 4 w₊ w₋, and
    ``rounding``, an estimate of the relative error by which the difference ∂ℓ₊/∂λ − ∂ℓ₋/∂λ is
    rounded (above 1, nothing of it is left). Truncation cannot be told from two passes;
    :class:`FiniteDifference` tells it for one more.

    Cost with F one forward pass: 6 F with λ in the loss alone, at most 10 F.

    Args:
        sigma: Norm σ of the perturbation, or ``"auto"``.
        temperature: Temperature τ of the softmax; with ``"auto"`` the least one.
        rescale: Learning rate of the one-step update whose hypergradient is estimated; ``None``
            leaves σ²/τ, and 1 with ``"auto"``.
        perturb: Name patterns of the inner parameters to perturb; ``None`` for all.
        prefix: Function ``(model, meta, batch) -> features`` that depends neither on λ nor on
            perturbed parameters; the losses must take the features as well as a batch, which
            base steps give them. Integers that it makes of either are beyond what is checked.

    Raises:
        ConfigurationError: A number is out of range, or ``perturb`` or ``prefix`` is of another
            kind.

    Example:
        >>> GuidedEvoGrad().learning_rate, GuidedEvoGrad(rescale=0.1).learning_rate
        (1.0, 0.1)
        >>> f"{GuidedEvoGrad(sigma=1e-2, temperature=0.05).learning_rate:.0e}"
        '2e-03'
    """

    traits = Traits(
        kind="approximate",
        computes="for small σ, derivative through one SGD step, at the θ before it",
        assumes="λ in the model or the training loss; first derivatives only",
        passes="6 F to 10 F",
        memory="one copy of θ and the graph of one pass",
        paper="Bohdal et al. 2021, arXiv 2106.10575",
    )

    def __init__(
        self,
        sigma: float | Literal["auto"] = "auto",
        temperature: float = 0.05,
        rescale: float | None = None,
        perturb: Sequence[str] | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        if isinstance(sigma, str) and sigma != "auto":
            raise ConfigurationError(f"sigma is {sigma!r}; accepted: a number above 0, or 'auto'.")
        chosen = None if isinstance(sigma, str) else sigma
        super().__init__(chosen, temperature, rescale, perturb, prefix)
        self.sigma = sigma

    @property
    @override
    def _own_learning_rate(self) -> float:
        return 1.0 if isinstance(self.sigma, str) else self.sigma**2 / self.temperature

    @property
    @override
    def _holds(self) -> bool:
        return True

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
        sigma = self._radius(problem, state, meta, direction, float(valid_loss), float(norm))
        candidates = self._candidates(state, direction, sigma)
        passes = self._losses(problem, state, candidates, meta, batch)
        middle = next(passes).detach()
        check_finite({"the training loss": middle})
        for loss in passes:
            sides.append(loss_gradient(loss, leaves))
            losses.append(loss.detach())
        again = (state.parameters, meta, state.buffers, batch, fold_in(state.key, state.step))
        repeat_once(given, middle, lambda: evaluate_again(problem, "train_loss", again))
        values = torch.stack(losses)
        check_finite({"the training loss of a candidate": values})
        values = values.to(norm.dtype)
        temperature, factor = self._scale(values, sigma)
        weights = torch.softmax(-values / temperature, dim=0)
        coefficient = (-2 * factor * sigma / temperature) * weights.prod() * norm
        unit = rounding_unit(state.parameters, meta, problem.coarse)
        # A function with a backward pass of its own may reach λ from one of the candidates alone.
        gaps = add_gradients(names, sides[0], [None if g is None else -g for g in sides[1]])
        through = [None if g is None else (coefficient * g).to(g.dtype) for g in gaps.values()]
        total = add_gradients(names, direct, through)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(forward=4, backward=3),
            details={
                "weights": weights,
                "coefficients": torch.stack([coefficient, -coefficient]),
                "train_losses": values,
                "sigma": values.new_tensor(sigma),
                "temperature": values.new_tensor(temperature),
                "saturation": 1 - 4 * weights.prod(),
                "rounding": _rounding_error(sides, list(gaps.values()), unit),
            },
        )

    @override
    def _objective(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> Tensor:
        """Return L(θ, λ) + r ⟨g, θ⁺(λ) − θ⟩ with the factor r; g and d are of the present λ."""
        present = problem.meta_leaves()
        loss, direction, norm, _ = self._direction(problem, state, present, valid)
        sigma = self._radius(problem, state, meta, direction, float(loss), float(norm))

        def values(at: Tensors) -> Tensor:
            _, *found = self._losses(problem, state, candidates, at, batch)
            return torch.stack([loss.detach() for loss in found]).to(norm.dtype)

        with torch.no_grad():
            candidates = self._candidates(state, direction, sigma)
            # A fixed scale does not ask for them.
            known = values(present) if self.sigma == "auto" else None
            temperature, factor = self._scale(known, sigma)
            weights = torch.softmax(-values(meta) / temperature, dim=0)
        shift = factor * sigma * (weights[0] - weights[1]) * norm
        return outer_loss(problem, state, meta, valid) + shift

    def _radius(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        direction: Tensors,
        loss: float,
        slope: float,
    ) -> float:
        """Return σ, which depends on λ by its type alone."""
        if not isinstance(self.sigma, str):
            return self.sigma
        moved = [state.parameters[name] for name in direction]
        unit = rounding_unit(state.parameters, meta, problem.coarse)
        return float(balanced_radius([(loss, slope)], norm_of(moved), unit))

    def _scale(self, losses: Tensor | None, sigma: float) -> tuple[float, float]:
        """Return τ, and the factor from its scale to the one that is asked for."""
        if self.sigma != "auto" or losses is None:
            return self.temperature, self._factor
        temperature = max(self.temperature, _SPREAD * float((losses[0] - losses[1]).abs()))
        return temperature, self.learning_rate * temperature / sigma**2

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

    @staticmethod
    def _candidates(state: InnerState, direction: Tensors, sigma: float) -> list[Tensors]:
        candidates = []
        for sign in (1.0, -1.0):
            candidates.append(
                {
                    name: tensor + sign * sigma * direction[name] if name in direction else tensor
                    for name, tensor in state.parameters.items()
                }
            )
        same = [(candidates[0][n] == candidates[1][n]).all() for n in direction]
        moving = [(d != 0).any() for d in direction.values()]
        if direction and bool(torch.stack(same).all() & torch.stack(moving).any()):
            dtype = str(next(iter(direction.values())).dtype).removeprefix("torch.")
            raise ConfigurationError(
                f"sigma is {sigma:.2g}, and a perturbation of that norm is lost in the rounding "
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
        """Yield the losses at θ and of both candidates, with the masks of the base step.

        They have graphs in λ. The candidates take what is held at θ, in their middle: what one of
        them held would leave an error of the order of σ.
        """
        key = fold_in(state.key, state.step)
        # Gradients in θ, which would tell what depends on it, are not taken here.
        held = HeldConstants(everything=True)
        kinds = (recording, replaying, replaying)
        for holding, at in zip(kinds, [state.parameters, *candidates], strict=True):
            with torch.enable_grad():
                loss, _ = holding(problem, held).evaluate_train(at, meta, state.buffers, batch, key)
            yield loss
            # The graph of one pass is gone before that of another one is made.
            del loss


def _rounding_error(sides: Sequence[Adjoint], gaps: Sequence[Tensor | None], unit: float) -> Tensor:
    """Return half a rounding unit of the gradients in λ, relative to their difference."""
    size = max(norm_of(side) for side in sides)
    gap = norm_of(gaps)
    share = unit / 2 * size
    return torch.tensor(share / gap if gap else math.inf if size else 0.0)
