"""EvoGrad: a hypergradient from one generation of evolution, without second derivatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.components.patterns import check_listed, matching
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    check_finite,
    fill_gradients,
    refuse_initial_state,
)
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.equal_losses import require_equal
from metatoolkit.hypergradients.generation import Generation, Noise
from metatoolkit.hypergradients.guided import Guide
from metatoolkit.hypergradients.prefix import Prefix, share_prefix
from metatoolkit.hypergradients.products import Adjoint, vector_jacobian_product
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.replay_check import repeat_once
from metatoolkit.hypergradients.trajectory import valid_key
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class EvoGrad(Estimator):
    """EvoGrad (Bohdal, Yang and Hospedales 2021, arXiv 2106.10575, section 3).

    K copies θ_k = θ + σ ε_k of the inner parameters are scored by the training loss ℓ_k on one
    batch; θ⁺ = Σ_k w_k θ_k with w = softmax(−ℓ/τ); the hypergradient is that of the outer loss at
    θ⁺ through the weights. With g the gradient of the outer loss at θ⁺ it is
    Σ_k c_k ∂ℓ_k/∂λ + ∂ℓ_V/∂λ, where c_k = −(w_k/τ) ⟨g, θ_k − θ⁺⟩, which is how it is computed:
    no double backward, and no gradient to the inner parameters of the copies.

    For small σ its mean is the one-step hypergradient of plain SGD with the learning rate
    σ²(K−1)/(Kτ), which at the paper's values is 1e-5; ``rescale`` sets that learning rate. What a
    training loss detaches from θ, as Meta-Weight-Net does with the losses that it weights, is each
    copy's own, as in the paper's code: the mean then counts it as a function of θ.

    ``guided`` perturbs along the gradient of the outer loss at θ instead of at random: two copies
    θ ± σ g/‖g‖, with g in the place of the outer gradient at θ⁺. For small σ it is that with the
    learning rate σ²/τ and the outer gradient at θ. Cost: 5 F with λ in the loss alone, at most 9 F.

    The copies are scored without a graph, then differentiated one at a time with their noise
    drawn again from its seed (``streamed``), so that memory is that of one copy for any K. Where
    the graph that λ needs is small, as with per-example weights, it is kept instead and the
    second forward pass saved. Cost with F one forward pass: (3K+3) F streamed with λ at the
    input, (2K+3) F with graphs kept, (K+3) F with λ in the loss alone.

    Args:
        candidates: Number of copies K, at least 2.
        sigma: Size of the perturbations σ.
        temperature: Temperature τ of the softmax.
        noise: ``"sign"`` (±1, the paper's deep experiments), ``"gaussian"``, or a function
            ``(copy, parameter name, parameter) -> tensor`` that returns the same for the same
            arguments.
        rescale: Learning rate of the one-step update whose hypergradient is estimated; ``None``
            leaves the paper's scale.
        perturb: Name patterns of the inner parameters to perturb; ``None`` for all.
        streamed: Whether each copy is computed again for its gradient; ``None`` decides by the
            memory that the first copy's graph holds.
        common_random_numbers: Whether all copies share their dropout masks. The paper's code
            draws new ones, which adds noise far larger than the effect of small σ.
        seed: Seed of the noise, beside the state's own key.
        guided: Whether the two copies lie along the gradient of the outer loss; σ is then the norm
            of the perturbation, and ``noise``, ``streamed`` and ``seed`` have no say.
        prefix: Function ``(model, meta, batch) -> features`` that depends neither on λ nor on
            perturbed parameters; the losses must take the features as well as a batch, which
            base steps give them. Integers that it makes of either are beyond what is checked.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.

    Raises:
        ConfigurationError: A number is out of range, a name is unknown, or arguments contradict
            each other.

    Example:
        >>> f"{EvoGrad(candidates=2, sigma=1e-3, temperature=0.05).learning_rate:.0e}"
        '1e-05'
    """

    complex_parameters = False
    # It compares by itself: copies have a key in common, and are not to be held for it.
    compared = ()
    traits = Traits(
        kind="stochastic",
        computes="derivative through one generation; for small σ that through one SGD step",
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
        streamed: bool | None = None,
        common_random_numbers: bool = True,
        seed: int = 0,
        guided: bool = False,
        prefix: Prefix | None = None,
        fresh: bool = True,
    ) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 2:
            raise ConfigurationError(
                f"candidates is {candidates!r}; an integer from 2 on is needed, since the weight "
                "of a single copy does not depend on its loss."
            )
        for name, value in (("sigma", sigma), ("temperature", temperature), ("rescale", rescale)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; a number above 0 is needed.")
        if noise not in ("sign", "gaussian") and not callable(noise):
            raise ConfigurationError(
                f"noise is {noise!r}; accepted: 'sign', 'gaussian' or a function "
                "(copy, name, parameter) -> tensor."
            )
        check_listed("perturb", perturb)
        if guided and (candidates != 2 or noise != "sign" or not common_random_numbers):
            raise ConfigurationError(
                f"guided=True with candidates={candidates}, noise={noise!r} and "
                f"common_random_numbers={common_random_numbers}; there are two copies along the "
                "validation gradient with common masks: leave these three arguments out."
            )
        if prefix is not None and not callable(prefix):
            raise ConfigurationError(
                f"prefix is {prefix!r}; accepted: None, or a function (model, meta, batch) -> "
                "features."
            )
        if prefix is not None and not common_random_numbers:
            raise ConfigurationError(
                "prefix with common_random_numbers=False: the copies share the features and their "
                "dropout masks; leave one of the two out."
            )
        self.candidates = candidates
        self.sigma = sigma
        self.temperature = temperature
        self.noise = noise
        self.rescale = rescale
        self.perturb = perturb
        self.streamed = streamed
        self.common_random_numbers = common_random_numbers
        self.seed = seed
        self.guided = guided
        self.prefix = prefix
        self._draws: Draws = Draws(fresh)
        if guided:
            self.traits = dataclasses.replace(
                self.traits,
                kind="approximate",
                computes="for small σ, derivative through one SGD step, at the θ before it",
                passes="5 F to 9 F",
            )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the one-step update whose hypergradient the estimate scales with."""
        return self._own_learning_rate if self.rescale is None else self.rescale

    @property
    def _own_learning_rate(self) -> float:
        if self.guided:
            return self.sigma**2 / self.temperature
        return self.sigma**2 * (self.candidates - 1) / (self.candidates * self.temperature)

    @property
    def _factor(self) -> float:
        return 1.0 if self.rescale is None else self.rescale / self._own_learning_rate

    def _guide(self, state: InnerState) -> Guide:
        return Guide(self._names(state.parameters), self.sigma, self.temperature, self._factor)

    def _generation(self, state: InnerState, key: int | None = None) -> Generation:
        return Generation(
            state=state,
            names=self._names(state.parameters),
            candidates=self.candidates,
            sigma=self.sigma,
            temperature=self.temperature,
            noise=self.noise,
            common_random_numbers=self.common_random_numbers,
            seed=self.seed,
            key=self._draws.current(state) if key is None else key,
        )

    def _names(self, parameters: Tensors) -> list[str]:
        if self.perturb is None:
            return list(parameters)
        return matching("perturb", self.perturb, parameters, "inner parameter")

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return EvoGrad's estimate; see the class."""
        del inner
        (batch,) = train_batches
        refuse_initial_state(problem, state, "EvoGrad", "perturbs θ around a state that it holds")
        meta, given = problem.meta_leaves(), problem
        problem, batch, valid_batch = self._shared(problem, state, meta, batch, valid_batch)
        if self.guided:
            result = self._guide(state).estimate(problem, state, batch, valid_batch, given)
            return dataclasses.replace(result, cost=self._with_prefix(result.cost))
        copies = self._generation(state, self._draws.advance(state))
        leaves = list(meta.values())
        losses, graphs = copies.score(problem, meta, batch, self.streamed)
        values = torch.stack([loss.detach() for loss in losses])
        check_finite({"the training loss of a perturbed copy": values})
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = copies.weights(values)

        valid_loss, valid_gradient, direct = copies.outer(
            problem, copies.offspring(weights), meta, valid_batch
        )
        coefficients = copies.coefficients(weights, valid_gradient, self._factor)
        del valid_gradient  # as large as θ, and of no use to the passes that follow

        def first() -> Tensor:
            return copies.train_loss(problem, 0, meta, batch)

        names = list(meta)
        if graphs:
            total = add_gradients(names, direct, _combine(losses, coefficients, leaves))
            with torch.enable_grad():
                repeat_once(given, losses[0], lambda: first().detach())
        else:
            total, again = add_gradients(names, direct), []
            for copy in range(self.candidates):
                with torch.enable_grad():
                    loss = copies.train_loss(problem, copy, meta, batch)
                again.append(loss.detach())
                part = _combine([loss], coefficients[copy : copy + 1], leaves)
                total = add_gradients(names, list(total.values()), part)
                del loss, part
            require_equal(given, "train_loss", losses, again, first)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=self._with_prefix(
                Cost(
                    forward=(1 if graphs else 2) * self.candidates + 1,
                    backward=self.candidates + 1,
                )
            ),
            details={"weights": weights, "coefficients": coefficients, "train_losses": values},
        )

    def _shared(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any, valid: Any
    ) -> tuple[BilevelProblem, Any, Any]:
        """Return problem and batches as the copies take them: features where there is a prefix."""
        if self.prefix is None:
            return problem, batch, valid
        names = self._names(state.parameters)
        return share_prefix(self.prefix, problem, state, meta, names, batch, valid)

    def _with_prefix(self, cost: Cost) -> Cost:
        """Count the passes of the prefix; the others are then passes of what follows it."""
        return cost if self.prefix is None else dataclasses.replace(cost, forward=cost.forward + 2)

    @override
    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the outer loss at θ⁺(λ) with the noise of the last call at ``state``.

        That is of the next one where there was none.

        For a guided one it is linear in θ⁺ around θ.

        With ``rescale``, a factor of r, it is L(θ⁺₀, λ) + r (L(θ⁺(λ), λ₀) − L(θ⁺₀, λ₀)).
        """
        del inner
        (batch,) = train_batches
        problem, batch, valid_batch = self._shared(problem, state, meta, batch, valid_batch)
        if self.guided:
            return self._guide(state).objective(problem, state, batch, valid_batch, meta)
        copies = self._generation(state)
        with torch.no_grad():

            def outer(at: Tensors, point: Tensors) -> Tensor:
                rest = (state.buffers, valid_batch, valid_key(state))
                return problem.evaluate_valid(at, point, *rest)

            if self.rescale is None:
                return outer(copies.evolve(problem, meta, batch), meta)
            present = problem.meta_parameters()
            before = copies.evolve(problem, present, batch)
            change = outer(copies.evolve(problem, meta, batch), present) - outer(before, present)
            return outer(before, meta) + self._factor * change


def _combine(losses: list[Tensor], coefficients: Tensor, leaves: list[Tensor]) -> Adjoint:
    """Return Σ_k c_k ∂ℓ_k/∂λ."""
    cotangents = [c.to(loss.dtype) for loss, c in zip(losses, coefficients, strict=True)]
    return vector_jacobian_product(losses, leaves, cotangents)
