"""(FG)²U: an unbiased hypergradient of T inner steps from random tangents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.forward import ForwardEstimator, Probes
from metatoolkit.hypergradients.noise import standard_noise
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class ForwardGradient(ForwardEstimator):
    """Forward gradient unrolling (FG)²U (Shen et al. 2024, arXiv 2406.14095, section 3).

    For a random direction v in λ with mean zero and covariance I, ⟨dF/dλ, v⟩ v has the mean dF/dλ;
    the derivative of the inner state along v goes along with the steps. ``samples`` directions are
    averaged. The direct gradient of the outer loss in λ is added as it is; meta-parameters that no
    inner step reads have it alone.

    It is unbiased for what :class:`ForwardMode` computes. Its mean square error is
    (N − 1) / ``samples`` times the squared norm of the part through the steps with signs, and
    (N + 1) / ``samples`` with normal numbers, for N meta-parameters.

    Cost with F one forward pass: 3 F for each step and up to 6 F more for each direction; 3 F for
    the outer loss. Memory, for any T and N: ``samples`` times the inner state and λ, and the
    double backward of one step for ``chunk`` directions at once.

    Args:
        steps: Number of inner steps T.
        samples: Number of random directions.
        noise: ``"sign"`` (±1, the least variance) or ``"gaussian"``.
        chunk: Number of directions that a step is differentiated along at a time; see
            :class:`ForwardMode`.
        seed: Seed of the directions, beside the state's own key.
        fresh: Whether a call at a state that was there before draws anew; else equal states get
            equal draws.

    Raises:
        ConfigurationError: A number is below 1, or the noise is unknown.

    Example:
        >>> ForwardGradient(100, samples=8).horizon
        100
    """

    traits = Traits(
        kind="stochastic",
        computes="derivative through T inner steps",
        assumes="symmetric second derivatives of the training loss; many samples or small steps",
        passes="(3 + 6 S) F for each step with S samples, 3 F for the outer loss",
        memory="S inner states and the graph of one step, for any T",
        paper="Shen et al. 2024, arXiv 2406.14095",
    )

    on_average = True

    def __init__(
        self,
        steps: int = 1,
        samples: int = 1,
        noise: Literal["sign", "gaussian"] = "sign",
        chunk: int = 64,
        seed: int = 0,
        fresh: bool = True,
    ) -> None:
        for name, value in (("steps", steps), ("samples", samples), ("chunk", chunk)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; a number of at least 1 is needed.")
        if noise not in ("sign", "gaussian"):
            raise ConfigurationError(f"noise is {noise!r}; accepted: 'sign', 'gaussian'.")
        self.horizon = steps
        self.samples = samples
        self.noise = noise
        self.chunk = chunk
        self.seed = seed
        self._draws: Draws = Draws(fresh)

    @override
    def _probes(self, problem: BilevelProblem, state: InnerState) -> Probes:
        drawn = self._draw(problem, state)

        def directions(first: int, last: int) -> list[Tensor]:
            return [direction[first:last] for direction in drawn.values()]

        def combine(slopes: Tensor) -> Tensors:
            return {
                name: torch.tensordot(slopes.to(direction.dtype), direction, 1) / self.samples
                for name, direction in drawn.items()
            }

        return Probes(directions, self.samples, combine)

    def _draw(self, problem: BilevelProblem, state: InnerState) -> Tensors:
        """Return the directions in each meta-parameter, (samples, *shape)."""
        key = fold_in(self._draws.advance(state), state.step, Stream.DIRECTIONS, self.seed)
        shapes = {
            name: tensor.expand(self.samples, *tensor.shape)
            for name, tensor in problem.meta_parameters().items()
        }
        return standard_noise(shapes, self.noise, key)
