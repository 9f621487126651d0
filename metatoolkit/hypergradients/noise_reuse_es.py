"""Noise-reuse evolution strategies: one perturbation for a whole inner problem."""

from __future__ import annotations

import dataclasses

from metatoolkit.hypergradients.persistent_es import PersistentES
from metatoolkit.hypergradients.registry import estimators


@estimators.register()
class NoiseReuseES(PersistentES):
    """Noise-reuse evolution strategies, NRES (Li et al. 2023, arXiv 2304.12180, algorithm 3).

    As :class:`PersistentES`, with the one perturbation that a pair draws at the beginning of an
    inner problem kept in all its windows. Its mean is the derivative of the window's outer loss
    through all windows, smoothed by one Gaussian over λ, which is what :class:`EvolutionStrategies`
    has for an unroll of them all.

    Cost and memory are those of :class:`PersistentES`.

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
        >>> NoiseReuseES(steps=10, pairs=4, sigma=0.01).horizon
        10
    """

    traits = dataclasses.replace(PersistentES.traits, paper="Li et al. 2023, arXiv 2304.12180")
    renews = False
