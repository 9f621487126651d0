"""EvoGrad: a hypergradient from candidates that compete, without second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
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
from metatoolkit.hypergradients.candidates import Candidates, Noise
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.equal_losses import require_equal
from metatoolkit.hypergradients.former_guided import TakesGuided
from metatoolkit.hypergradients.prefix import Prefix
from metatoolkit.hypergradients.products import Adjoint, vector_jacobian_product
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.replay_check import repeat_once
from metatoolkit.hypergradients.scored_candidates import ScoredCandidates
from metatoolkit.hypergradients.trajectory import valid_key
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class EvoGrad(ScoredCandidates, metaclass=TakesGuided):
    """EvoGrad (Bohdal, Yang and Hospedales 2021, arXiv 2106.10575, section 3).

    K candidates θ_k = θ + σ ε_k of the inner parameters are scored by the training loss ℓ_k on one
    batch; θ⁺ = Σ_k w_k θ_k with w = softmax(−ℓ/τ); the hypergradient is that of the outer loss at
    θ⁺ through the weights. With g the gradient of the outer loss at θ⁺ it is
    Σ_k c_k ∂ℓ_k/∂λ + ∂ℓ_V/∂λ, where c_k = −(w_k/τ) ⟨g, θ_k − θ⁺⟩, which is how it is computed:
    no double backward, and no gradient to the inner parameters of the candidates.

    For small σ its mean is the one-step hypergradient of plain SGD with the learning rate
    σ²(K−1)/(Kτ), which at the paper's values is 1e-5; ``rescale`` sets that learning rate. What a
    training loss detaches from θ, as Meta-Weight-Net does with the losses that it weights, is each
    candidate's own, as in the paper's code: the mean then counts it as a function of θ, which the
    one-step hypergradient does not. ``constants="common"`` gives all candidates what the loss at θ
    detaches (see :class:`HeldConstants`), so that the mean is again the one-step hypergradient. It
    is held beside: the detached tensors and the sides of rectified units.

    :class:`GuidedEvoGrad` perturbs along the gradient of the outer loss instead of at random.

    The candidates are scored without a graph, then differentiated one at a time with their noise
    drawn again from its seed (``streamed``), so that memory is that of one candidate for any K.
    Where the graph that λ needs is small, as with per-example weights, it is kept instead and the
    second forward pass saved. Cost with F one forward pass: (3K+3) F streamed with λ at the
    input, (2K+3) F with graphs kept, (K+3) F with λ in the loss alone; and 1 F more with common
    constants.

    Args:
        candidates: Number of candidates K, at least 2.
        sigma: Size of the perturbations σ.
        temperature: Temperature τ of the softmax.
        noise: ``"sign"`` (±1, the paper's deep experiments), ``"gaussian"``, or a function
            ``(candidate, parameter name, parameter) -> tensor`` that returns the same for the same
            arguments.
        rescale: Learning rate of the one-step update whose hypergradient is estimated; ``None``
            leaves the paper's scale.
        perturb: Name patterns of the inner parameters to perturb; ``None`` for all.
        streamed: Whether each candidate is computed again for its gradient; ``None`` decides by the
            memory that the first candidate's graph holds. ``"vmap"`` scores all of them by one
            pass that is mapped over them, with K graphs and K copies of θ: fewer and larger
            kernels.
        common_random_numbers: Whether all candidates share their dropout masks. The paper's code
            draws new ones, which adds noise far larger than the effect of small σ.
        seed: Seed of the noise, beside the state's own key.
        prefix: Function ``(model, meta, batch) -> features`` that depends neither on λ nor on
            perturbed parameters; the losses must take the features as well as a batch, which
            base steps give them. Integers that it makes of either are beyond what is checked.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.
        constants: Whether what a derivative takes for a constant is each candidate's ``"own"``, or
            ``"common"``, which needs common random numbers.

    Raises:
        ConfigurationError: A number is out of range, a name is unknown, or arguments contradict
            each other.

    Example:
        >>> f"{EvoGrad(candidates=2, sigma=1e-3, temperature=0.05).learning_rate:.0e}"
        '1e-05'
    """

    former_options = ("guided",)
    traits = Traits(
        kind="stochastic",
        computes="derivative through a mean of candidates; for small σ that through one SGD step",
        assumes="λ in the model or the training loss; first derivatives only",
        passes="(K+3) F to (3K+3) F",
        memory="one copy of θ and the graph of one pass",
        paper="Bohdal et al. 2021, arXiv 2106.10575",
    )

    def __init__(
        self,
        candidates: int = 2,
        sigma: float = 1e-3,
        temperature: float = 0.05,
        noise: Literal["sign", "gaussian"] | Noise = "sign",
        rescale: float | None = None,
        perturb: Sequence[str] | None = None,
        streamed: bool | Literal["vmap"] | None = None,
        common_random_numbers: bool = True,
        seed: int = 0,
        prefix: Prefix | None = None,
        fresh: bool = True,
        constants: Literal["own", "common"] = "own",
    ) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 2:
            raise ConfigurationError(
                f"candidates is {candidates!r}; an integer from 2 on is needed, since the weight "
                "of a single candidate does not depend on its loss."
            )
        if noise not in ("sign", "gaussian") and not callable(noise):
            raise ConfigurationError(
                f"noise is {noise!r}; accepted: 'sign', 'gaussian' or a function "
                "(candidate, name, parameter) -> tensor."
            )
        if prefix is not None and not common_random_numbers:
            raise ConfigurationError(
                "prefix with common_random_numbers=False: the candidates share the features and "
                "their dropout masks; leave one of the two out."
            )
        if streamed not in (None, True, False, "vmap"):
            raise ConfigurationError(
                f"streamed is {streamed!r}; accepted: None, True, False, 'vmap'."
            )
        if streamed == "vmap" and constants == "common":
            raise ConfigurationError(
                "streamed='vmap' with constants='common': what the loss at θ detaches is given to "
                "one candidate after the other; leave one of the two out."
            )
        if constants not in ("own", "common"):
            raise ConfigurationError(f"constants is {constants!r}; accepted: 'own', 'common'.")
        if constants == "common" and not common_random_numbers:
            raise ConfigurationError(
                "constants='common' with common_random_numbers=False: a dropout mask is one of the "
                "constants; leave one of the two out."
            )
        super().__init__(sigma, temperature, rescale, perturb, prefix)
        self.constants = constants
        self.sigma = sigma
        self.candidates = candidates
        self.noise = noise
        self.streamed = streamed
        self.common_random_numbers = common_random_numbers
        self.seed = seed
        self._draws: Draws = Draws(fresh)

    @property
    @override
    def _own_learning_rate(self) -> float:
        return self.sigma**2 * (self.candidates - 1) / (self.candidates * self.temperature)

    @property
    @override
    def _holds(self) -> bool:
        return self.constants == "common"

    def _candidates(self, state: InnerState, key: int | None = None) -> Candidates:
        return Candidates(
            state=state,
            names=self._names(state.parameters),
            number=self.candidates,
            sigma=self.sigma,
            temperature=self.temperature,
            noise=self.noise,
            common_random_numbers=self.common_random_numbers,
            seed=self.seed,
            key=self._draws.current(state) if key is None else key,
            held=HeldConstants(everything=True) if self._holds else None,
        )

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
        candidates = self._candidates(state, self._draws.advance(state))
        leaves = list(meta.values())
        holds = candidates.held is not None
        middle = candidates.hold(problem, meta, batch) if holds else None
        losses, graphs = candidates.score(problem, meta, batch, self.streamed, given)
        values = torch.stack([loss.detach() for loss in losses])
        check_finite({"the training loss of a candidate": values})
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = candidates.weights(values)

        valid_loss, valid_gradient, direct = candidates.outer(
            problem, candidates.offspring(weights), meta, valid_batch
        )
        coefficients = candidates.coefficients(weights, valid_gradient, self._factor)
        del valid_gradient  # as large as θ, and of no use to the passes that follow

        def first() -> Tensor:
            # What is held would hide that it is drawn anew.
            if holds:
                return candidates.middle(problem, meta, batch)
            return candidates.train_loss(problem, 0, meta, batch)

        if graphs or holds:
            with torch.enable_grad():
                known = losses[0] if middle is None else middle
                repeat_once(given, known, lambda: first().detach())
        names = list(meta)
        if graphs:
            total = add_gradients(names, direct, _combine(losses, coefficients, leaves))
        else:
            total, again = add_gradients(names, direct), []
            for candidate in range(self.candidates):
                with torch.enable_grad():
                    loss = candidates.train_loss(problem, candidate, meta, batch)
                again.append(loss.detach())
                part = _combine([loss], coefficients[candidate : candidate + 1], leaves)
                total = add_gradients(names, list(total.values()), part)
                del loss, part
            require_equal(given, "train_loss", losses, again, first)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(
                forward=(1 if graphs else 2) * self.candidates + 1 + holds,
                backward=self.candidates + 1,
            ),
            details={"weights": weights, "coefficients": coefficients, "train_losses": values},
        )

    @override
    def _objective(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> Tensor:
        """Return the outer loss at θ⁺(λ) with the noise of the last call at ``state``.

        That is of the next one where there was none.

        With ``rescale``, a factor of r, it is L(θ⁺₀, λ) + r (L(θ⁺(λ), λ₀) − L(θ⁺₀, λ₀)).
        """
        candidates = self._candidates(state)
        with torch.no_grad():

            def outer(at: Tensors, point: Tensors) -> Tensor:
                rest = (state.buffers, valid, valid_key(state))
                return problem.evaluate_valid(at, point, *rest)

            if self.rescale is None:
                return outer(candidates.evolve(problem, meta, batch), meta)
            present = problem.meta_parameters()
            before = candidates.evolve(problem, present, batch)
            change = outer(candidates.evolve(problem, meta, batch), present) - outer(
                before, present
            )
            return outer(before, meta) + self._factor * change


def _combine(losses: list[Tensor], coefficients: Tensor, leaves: list[Tensor]) -> Adjoint:
    """Return Σ_k c_k ∂ℓ_k/∂λ."""
    cotangents = [c.to(loss.dtype) for loss, c in zip(losses, coefficients, strict=True)]
    return vector_jacobian_product(losses, leaves, cotangents)
