"""Evolution strategies: a hypergradient from evaluations alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import CheckpointError, ConfigurationError, UnusedMetaParameterError
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    check_finite,
)
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.noise import standard_noise
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors


class AntitheticEvaluations(Estimator):
    """What estimators share that perturb λ to both sides and compare outer losses.

    Args:
        steps: Number of inner steps of a call.
        pairs: Number N of antithetic pairs.
        sigma: Standard deviation σ of the perturbations of λ.
        noise: ``"gaussian"`` or ``"sign"`` (±1).
        seed: Seed of the perturbations, beside the state's own key.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.

    Raises:
        ConfigurationError: A number is out of range, or the noise is unknown.
    """

    def __init__(
        self,
        steps: int = 1,
        pairs: int = 1,
        sigma: float = 0.1,
        noise: Literal["gaussian", "sign"] = "gaussian",
        seed: int = 0,
        fresh: bool = True,
    ) -> None:
        for name, value in (("steps", steps), ("pairs", pairs)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; at least 1 is needed.")
        if not 0 < sigma < float("inf"):
            raise ConfigurationError(f"sigma is {sigma}; a number above 0 is needed.")
        if noise not in ("gaussian", "sign"):
            raise ConfigurationError(f"noise is {noise!r}; accepted: 'gaussian', 'sign'.")
        self.horizon = steps
        self.pairs = pairs
        self.sigma = sigma
        self.noise = noise
        self.seed = seed
        self._draws: Draws = Draws(fresh)

    holds_constants = False
    on_average = True
    compared = ("train_loss", "valid_loss")
    _moved = False

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return which draw comes next, and whether a perturbation changed the outer loss."""
        return {**super().state_dict(), "moved": self._moved}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "moved" not in state_dict:
            raise CheckpointError(
                f"the checkpoint is not one of {type(self).__name__}; make the trainer with the "
                "estimator it had."
            )
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "moved"})
        self._moved = state_dict["moved"]

    def _draw(self, meta: Mapping[str, Tensor], state: InnerState, pair: int) -> Tensors:
        key = fold_in(state.key, state.step, Stream.PERTURBED_META, self.seed, pair)
        return standard_noise(meta, self.noise, key)

    def _run(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        start: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        noise: Tensors,
        sign: int,
    ) -> tuple[InnerState, Tensor]:
        """Return where λ ± σ ε leads from ``start``, and the outer loss there."""
        meta = {
            name: parameter.detach() + sign * self.sigma * noise[name]
            for name, parameter in problem.meta_parameters().items()
        }
        final = roll_out(problem, inner, start, meta, train_batches)
        return final, outer_loss(problem, final, meta, valid_batch)

    def _result(
        self,
        problem: BilevelProblem,
        state: InnerState,
        losses: list[tuple[Tensor, Tensor]],
        directions: list[Tensors],
    ) -> Hypergradient:
        """Return the mean over the pairs of (ℓ₊ − ℓ₋) / (2σ) times the direction.

        A difference of zero is what a plateau has; it is an error as long as there was no other.
        """
        pairs = torch.stack([torch.stack(pair) for pair in losses])
        check_finite({"the outer loss at a perturbed λ": pairs})
        slopes = (pairs[:, 0] - pairs[:, 1]) / (2 * self.sigma)
        self._moved = self._moved or bool(slopes.any())
        if not self._moved:
            raise UnusedMetaParameterError(
                f"no outer loss changed when λ moved by sigma={self.sigma}: nothing depends on "
                f"the meta-parameters ({', '.join(problem.meta_parameter_names[:5])}), or they "
                f"lie on a plateau, or {pairs.dtype} rounds the change away. Use the `meta` that "
                "is passed to the losses, or a larger sigma."
            )
        gradient = {
            name: sum(
                (
                    slope.to(parameter.dtype) * direction[name]
                    for slope, direction in zip(slopes, directions, strict=True)
                ),
                start=torch.zeros_like(parameter.detach()),
            )
            / self.pairs
            for name, parameter in problem.meta_parameters().items()
        }
        steps = 2 * self.pairs * self.horizon
        return Hypergradient(
            gradient=gradient,
            valid_loss=pairs.mean(),
            state=state,
            cost=Cost(forward=steps + 2 * self.pairs, backward=steps),
            details={"losses": pairs},
        )

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
        """Return the outer loss after the steps; the estimate's mean is its derivative as σ → 0."""
        final = roll_out(problem, inner, state, meta, train_batches)
        return outer_loss(problem, final, meta, valid_batch)


@estimators.register()
class EvolutionStrategies(AntitheticEvaluations):
    """Antithetic evolution strategies (Salimans et al. 2017, arXiv 1703.03864, section 2.1).

    With ε standard noise in λ the estimate is (L(λ + σε) − L(λ − σε)) / (2σ) · ε, averaged over
    ``pairs``, where L is the outer loss after T inner steps. With Gaussian noise its mean is the
    derivative of L smoothed by a Gaussian of width σ in λ. Nothing is differentiated in λ, which
    may stand where no derivative exists. Both runs of a pair share their random numbers. A call in
    which no loss differs is an error until a first one does.

    From a state in the middle of training it sees these T steps alone, and so has the bias of
    truncation; :class:`PersistentES` and :class:`NoiseReuseES` do not.

    Cost with F one forward pass: N pairs take 2N (3T + 1) F. Memory: an ordinary inner step.

    Args:
        steps: Number of inner steps T.
        pairs: Number N of antithetic pairs.
        sigma: Standard deviation σ of the perturbations of λ.
        noise: ``"gaussian"`` or ``"sign"`` (±1).
        seed: Seed of the perturbations, beside the state's own key.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.

    Raises:
        ConfigurationError: A number is out of range, or the noise is unknown.

    Example:
        >>> EvolutionStrategies(steps=10, pairs=4, sigma=0.01).horizon
        10
    """

    traits = Traits(
        kind="stochastic",
        computes="derivative through T inner steps of the loss smoothed over λ",
        assumes="nothing but evaluations; few meta-parameters or many pairs",
        passes="2N (3T + 1) F for N pairs",
        memory="an ordinary inner step",
        paper="Salimans et al. 2017, arXiv 1703.03864",
    )

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the estimate; see the class."""
        losses, directions = [], []
        drawing = dataclasses.replace(state, key=self._draws.advance(state))
        for pair in range(self.pairs):
            noise = self._draw(problem.meta_parameters(), drawing, pair)
            up, down = (
                self._run(problem, inner, state, train_batches, valid_batch, noise, sign)[1]
                for sign in (1, -1)
            )
            losses.append((up, down))
            directions.append(noise)
        return self._result(problem, state, losses, directions)
