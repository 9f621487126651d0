"""Configurations of the one-dimensional illustration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import (
    Count,
    Field,
    NotNegative,
    Positive,
    Seed,
    Settings,
    entry,
)

PARTS = ("gradients", "trajectories", "bias_variance")


_Two = Annotated[int, Field(ge=2)]
_Values = Annotated[list[Positive], Field(min_length=1)]
_Counts = Annotated[list[_Two], Field(min_length=1)]
_Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Penalties(Settings):
    """Values of λ, evenly spaced."""

    first: NotNegative = entry(0.1, "First λ.")
    last: NotNegative = entry(2.0, "Last λ.")
    count: Count = entry(100, "Number of λ.")


class Sweep(Settings):
    """What is varied around the first of `candidates`, `sigma` and `temperature`."""

    candidates: _Counts = entry([2, 3, 5, 10, 30, 100], "Numbers of candidates.")
    sigma: _Values = entry([0.01, 0.03, 0.1, 0.3, 1.0, 3.0], "Values of σ.")
    temperature: _Values = entry([0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0], "Values of τ.")


class IllustrationSettings(Settings):
    """Configuration of the application."""

    seed: Seed = entry(..., "Seed of all that is drawn; drawn itself where it is not given.")
    part: Literal["gradients", "trajectories", "bias_variance"] = entry("gradients", "What to do.")
    candidates: _Counts = entry([2, 10, 100], "Numbers of candidates K.")
    sigma: Positive = entry(1.0, "σ, the standard deviation of what candidates differ by.")
    temperature: Positive = entry(0.5, "τ, the temperature of their weights.")
    penalties: Penalties = entry(Penalties(), "Values of λ.")
    trials: _Two = entry(100, "Draws of x and of the candidates at each λ.")
    starts: Annotated[list[_Point], Field(min_length=1)] = entry(
        [[-1.8, 0.2], [-0.9, 1.2], [0.9, 0.8], [1.3, 0.2], [1.5, 1.7]],
        "Where (x, λ) start in the trajectories.",
    )
    steps: Count = entry(5, "Steps of the trajectories.")
    lr: Positive = entry(0.1, "Learning rate of x and of λ.")
    sweep: Sweep = entry(Sweep(), "What is varied for bias and variance.")
    horizon: Count = entry(25, "Inner steps of the other estimators.")
    nodes: Count = entry(7, "Nodes over x.")
    draws: Count = entry(60, "Draws of the other estimators that are random.")
    progress: bool = entry(True, "Whether to show a progress bar.")


DEFAULT = IllustrationSettings.defaults()

NAMED: dict[str, dict[str, Any]] = {
    # Estimate against true hypergradient; with seed=1 the noise of the paper's notebook.
    "gradients": {"part": "gradients"},
    # Five steps of x and λ from five starts.
    "trajectories": {"part": "trajectories"},
    # EvoGrad's bias and deviation against K, σ and τ, and those of every other estimator.
    "bias_variance": {
        "part": "bias_variance",
        "candidates": [10],
        "penalties": {"first": 0.1, "last": 2.0, "count": 5},
        "trials": 20_000,
    },
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "candidates": [2, 3],
        "penalties": {"count": 3},
        "trials": 10,
        "steps": 2,
        "sweep": {"candidates": [2, 4], "sigma": [0.1, 1.0], "temperature": [0.5, 5.0]},
        "horizon": 2,
        "nodes": 2,
        "draws": 2,
        "progress": False,
    },
}
