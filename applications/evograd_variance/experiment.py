"""Error of EvoGrad's hypergradient on label noise (Bohdal et al. 2021, section 4.3).

Trains the label noise application with the exact one-step hypergradient, halts at an early and at a
late step, and compares estimates there with the exact one, draw by draw. What is told is the mean
square of their distance over the square of its norm, for K = 2, 4 and 8 candidates.

``directions`` says how candidates are drawn (see :mod:`applications.evograd_variance.directions`).
Without candidates are ``guided``, which is :class:`GuidedEvoGrad` and takes the passes of K = 2,
and ``averaged``, the mean of the exact hypergradients of the last five steps: what is left of the
error when the mean over five outer steps takes away all noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

import metatoolkit as mt
from applications.evograd_variance import directions
from applications.label_noise.experiment import assemble
from applications.label_noise.experiment import settings_of as label_noise
from applications.label_noise.settings import DEFAULT
from metatoolkit import records
from metatoolkit.experiments.configuration import (
    Count,
    Field,
    Positive,
    Seed,
    Settings,
    entry,
)
from metatoolkit.experiments.configured import configure
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, Unrolled
from metatoolkit.hypergradients.trajectory import finite_outer_gradient
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors

COUNTS = (2, 4, 8)

# Former gradients are there from six steps on, and the learning rate falls after 1,005.
_Step = Annotated[int, Field(ge=6, le=1000)]


class VarianceSettings(Settings):
    """Configuration of the application."""

    seed: Seed = entry(..., "Seed of the training and of the draws; drawn where it is not given.")
    directions: Literal[
        "independent", "antithetic", "orthogonal", "span", "last_gradient", "guided", "averaged"
    ] = entry("independent", "How candidates are drawn.")
    constants: Literal["own", "common"] = entry(
        "common", "Whether candidates share what the loss detaches."
    )
    early: _Step = entry(30, "Step of the early state.")
    late: _Step = entry(600, "Step of the late state.")
    draws: Count = entry(16, "Draws of the candidates.")
    sigma: Positive = entry(2.3e-3, "σ, the size of the perturbations.")
    temperature: Positive = entry(0.05, "τ, the temperature of the weights.")
    progress: bool = entry(False, "Without effect; all applications have it.")


experiment = records.experiment("evograd_variance")
# Seconds instead of minutes, for tests; its numbers mean nothing.
settings_of = configure(
    experiment, VarianceSettings, {"smoke": {"early": 6, "late": 7, "draws": 2}}
)


class Watched(Unrolled):
    """The exact one-step hypergradient, which keeps its last calls."""

    def __init__(self) -> None:
        super().__init__(steps=1)
        self.calls: list[tuple[InnerState, Any, Any, Tensor]] = []

    @override
    def estimate(
        self,
        problem: mt.BilevelProblem,
        inner: mt.inner.InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> mt.hypergradients.Hypergradient:
        result = super().estimate(problem, inner, state, train_batches, valid_batch)
        call = state, train_batches[0], valid_batch, _flat(result.gradient)
        self.calls = [*self.calls[-4:], call]
        return result


def relative_errors(config: dict[str, Any], steps: int) -> dict[int, float]:
    """Return the relative mean square error after some steps of training, for each K.

    Args:
        config: A configuration of this experiment.
        steps: Number of steps, at least 6.

    Returns:
        Errors by K; for ``guided`` and ``averaged`` with K = 2 alone.
    """
    own = label_noise({**DEFAULT, "method": "second_order", "seed": config["seed"]})
    assembly, watched, rate = assemble(own), Watched(), own["lr"]
    trainer = assembly.trainer
    trainer.estimator = watched
    trainer.fit(assembly.train_batches, assembly.valid_batches, steps=steps, progress=False)
    problem, inner, kind = trainer.problem, trainer.inner, config["directions"]
    state, batch, valid_batch, _ = watched.calls[-1]
    call = problem, inner, state, [batch], valid_batch
    # λ has moved since.
    exact = _flat(Unrolled(1)(*call).gradient)

    def error(estimates: list[Tensor]) -> float:
        squares = [(estimate - exact).square().sum() for estimate in estimates]
        return float(torch.stack(squares).mean() / exact.square().sum())

    if kind == "averaged":
        return {2: error([torch.stack([found for *_, found in watched.calls]).mean(0)])}
    if kind == "guided":
        return {2: error([_flat(GuidedEvoGrad(rescale=rate)(*call).gradient)])}
    gradients = torch.stack(
        [_outer_gradient(problem, at, valid) for at, _, valid, _ in watched.calls[:-1]]
    )
    errors = {}
    for number in COUNTS:
        estimates = []
        for draw in range(config["draws"]):
            noise = directions.draw(kind, gradients, number, fold_in(config["seed"], draw))
            estimator = _evograd(config, noise, rate, state.parameters)
            estimates.append(_flat(estimator(*call).gradient))
        errors[number] = error(estimates)
    return errors


def _evograd(config: dict[str, Any], noise: Tensor, rate: float, parameters: Tensors) -> EvoGrad:
    """Return EvoGrad with given perturbations, shape (K, D), scaled to one step of SGD."""
    number, sigma, temperature = len(noise), config["sigma"], config["temperature"]
    sizes = [parameter.numel() for parameter in parameters.values()]
    parts = dict(zip(parameters, noise.split(sizes, dim=1), strict=True))
    moment = directions.second_moment(config["directions"], number)
    # EvoGrad takes (K−1)/K for the factor of the second moment.
    scale = (number - 1) / number / moment
    return EvoGrad(
        number,
        sigma,
        temperature,
        noise=lambda k, name, parameter: parts[name][k].view_as(parameter).to(parameter.dtype),
        rescale=rate * scale,
        constants=config["constants"],
    )


def _outer_gradient(problem: mt.BilevelProblem, state: InnerState, batch: Any) -> Tensor:
    """Return the gradient of the outer loss in θ, shape (D,)."""
    meta = problem.meta_leaves()
    _, adjoint, _ = finite_outer_gradient(problem, state, meta, batch)
    pairs = zip(state.parameters.values(), adjoint, strict=False)
    parts = [torch.zeros_like(p) if g is None else g for p, g in pairs]
    return torch.cat([part.flatten() for part in parts]).double()


def _flat(gradient: Tensors) -> Tensor:
    return torch.cat([part.flatten() for part in gradient.values()]).double()


@experiment.main
def main(_config: dict[str, Any]) -> dict[str, float]:
    """Measure the error of one kind of estimate at both states.

    Returns:
        Relative mean square errors, ``early_k2`` and the like.
    """
    config = settings_of(dict(_config))
    return {
        f"{when}_k{number}": error
        for when in ("early", "late")
        for number, error in relative_errors(config, config[when]).items()
    }
