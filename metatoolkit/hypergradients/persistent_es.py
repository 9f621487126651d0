"""Persistent evolution strategies: unbiased over many short unrolls of one inner problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from metatoolkit.errors import CheckpointError
from metatoolkit.hypergradients.base import Hypergradient, Traits
from metatoolkit.hypergradients.evolution_strategies import AntitheticEvaluations
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two perturbed trajectories, and the perturbations that made them what they are."""

    up: InnerState
    down: InnerState
    total: Tensors


@estimators.register()
class PersistentES(AntitheticEvaluations):
    """Persistent evolution strategies, PES (Vicol et al. 2021, arXiv 2112.13835, algorithm 2).

    An inner problem is worked off in windows of ``steps`` inner steps, one window a call. Each of
    ``pairs`` pairs of trajectories keeps its own inner state from call to call; in each window it
    gets a new perturbation ε, and ξ is the sum of those so far. The estimate is
    (L₊ − L₋) / (2σ) · ξ, averaged over the pairs, with L the outer loss at the end of the window.
    With Gaussian noise it is unbiased for the derivative of that loss, smoothed, through all
    windows since the beginning, not only through the last one.

    A call at a state whose step number is not above that of the call before, or whose random key
    is another, begins the inner problem anew, at that state; ``MetaTrainer(reset_every=...)`` does
    so by itself. Between, the given state is not read: the trajectories go on from their own, and
    see the batches of the calls alone, so that ``MetaTrainer`` takes it with ``meta_every=1``.

    Cost with F one forward pass: N pairs take 2N (3T + 1) F for T steps. Memory: 2N inner states
    and an ordinary inner step.

    Args:
        steps: Number T of inner steps in a window.
        pairs: Number N of antithetic pairs.
        sigma: Standard deviation σ of the perturbations of λ.
        noise: ``"gaussian"`` or ``"sign"`` (±1).
        seed: Seed of the perturbations, beside the state's own key.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.

    Raises:
        ConfigurationError: A number is out of range, or the noise is unknown.

    Example:
        >>> PersistentES(steps=10, pairs=4, sigma=0.01).horizon
        10
    """

    traits = Traits(
        kind="stochastic",
        computes="derivative of a window's outer loss, smoothed, through all windows before it",
        assumes="nothing but evaluations; few meta-parameters or many pairs; windows in order",
        passes="2N (3T + 1) F for N pairs and a window of T steps",
        memory="2N inner states and an ordinary inner step",
        paper="Vicol et al. 2021, arXiv 2112.13835",
    )

    windows = True
    renews = True
    """Whether each window draws a perturbation of its own."""

    _pairs: tuple[_Pair, ...] = ()
    _last_step = -1

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Work off one window and return its estimate; see the class."""
        meta = {name: tensor.detach() for name, tensor in problem.meta_parameters().items()}
        begins = (
            len(self._pairs) != self.pairs
            or state.step <= self._last_step
            or state.key != self._pairs[0].up.key
        )
        key = self._draws.advance(state)
        pairs, losses = [], []
        for index in range(self.pairs):
            if begins:
                up = down = state
                noise = total = self._draw(meta, dataclasses.replace(state, key=key), index)
            else:
                # A checkpoint is loaded on the CPU.
                device = next(iter(state.parameters.values())).device
                up, down = self._pairs[index].up.to(device), self._pairs[index].down.to(device)
                noise = total = {n: t.to(device) for n, t in self._pairs[index].total.items()}
                if self.renews:
                    noise = self._draw(meta, dataclasses.replace(up, key=key), index)
                    total = {name: total[name] + noise[name] for name in total}
            arguments = (train_batches, valid_batch, noise)
            up, high = self._run(problem, inner, up, *arguments, 1)
            down, low = self._run(problem, inner, down, *arguments, -1)
            pairs.append(_Pair(up, down, total))
            losses.append((high, low))
        result = self._result(problem, state, losses, [pair.total for pair in pairs])
        self._pairs, self._last_step = tuple(pairs), state.step
        return result

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the trajectories and their perturbations."""
        return {
            **super().state_dict(),
            "last_step": self._last_step,
            "pairs": [
                {"up": p.up.state_dict(), "down": p.down.state_dict(), "total": dict(p.total)}
                for p in self._pairs
            ],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with stored trajectories.

        Raises:
            CheckpointError: The state belongs to another estimator, or to another number of pairs.
        """
        fits = set(state_dict) - {"draws"} == {"moved", "last_step", "pairs"}
        if not fits or len(state_dict["pairs"]) not in (0, self.pairs):
            raise CheckpointError(
                f"the checkpoint is not one of {type(self).__name__} with {self.pairs} pairs; make "
                "the trainer with the estimator it had."
            )
        own = ("last_step", "pairs")
        super().load_state_dict({n: v for n, v in state_dict.items() if n not in own})
        self._last_step = state_dict["last_step"]
        self._pairs = tuple(
            _Pair(
                InnerState.from_state_dict(pair["up"]),
                InnerState.from_state_dict(pair["down"]),
                dict(pair["total"]),
            )
            for pair in state_dict["pairs"]
        )
