"""Configurations of the one-dimensional illustration."""

from __future__ import annotations

from typing import Any

from metatoolkit.experiments.configuration import (
    COUNT,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Rules,
    integer,
    list_of,
    number,
    one_of,
)

PARTS = ("gradients", "trajectories", "bias_variance")

DEFAULT: dict[str, Any] = {
    "part": "gradients",
    "candidates": [2, 10, 100],
    "sigma": 1.0,
    "temperature": 0.5,
    # Values of λ, evenly spaced, and draws of x and of the copies at each.
    "penalties": {"first": 0.1, "last": 2.0, "count": 100},
    "trials": 100,
    # Trajectories: where (x, λ) start, and the learning rate of both.
    "starts": [[-1.8, 0.2], [-0.9, 1.2], [0.9, 0.8], [1.3, 0.2], [1.5, 1.7]],
    "steps": 5,
    "lr": 0.1,
    # Bias and variance: what is varied around the first of `candidates`, `sigma` and `temperature`,
    # inner steps of the other estimators, nodes over x, and draws of the random ones.
    "sweep": {
        "candidates": [2, 3, 5, 10, 30, 100],
        "sigma": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
        "temperature": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    },
    "horizon": 25,
    "nodes": 7,
    "draws": 60,
    "progress": True,
}

RULES: Rules = {
    "part": one_of(*PARTS),
    "seed": SEED,
    "candidates": list_of(integer(2), 1),
    "sigma": POSITIVE,
    "temperature": POSITIVE,
    "penalties": {"first": NOT_NEGATIVE, "last": NOT_NEGATIVE, "count": COUNT},
    # A deviation takes two.
    "trials": integer(2),
    "starts": list_of(list_of(number(), 2, 2), 1),
    "steps": COUNT,
    "lr": POSITIVE,
    "sweep": {
        "candidates": list_of(integer(2), 1),
        "sigma": list_of(POSITIVE, 1),
        "temperature": list_of(POSITIVE, 1),
    },
    "horizon": COUNT,
    "nodes": COUNT,
    "draws": COUNT,
    "progress": FLAG,
}

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
