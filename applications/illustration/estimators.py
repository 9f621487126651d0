"""Bias and deviation of every estimator of the toolkit on the one-dimensional problem."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import metatoolkit as mt
from applications.illustration.problem import build_problem, true_hypergradient
from metatoolkit import hypergradients as hg
from metatoolkit.errors import UnsupportedError, UnusedMetaParameterError
from metatoolkit.hypergradients.listing import all_estimators
from metatoolkit.randomness import fold_in


@dataclass(frozen=True)
class Spread:
    """What an estimator gives at several λ.

    Attributes:
        mean: Mean over x and over the estimator's own draws, one for each λ.
        std: Standard deviation over both.
        note: Why there are none; empty otherwise.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    note: str = ""

    def errors(self, penalties: Sequence[float]) -> tuple[float, float]:
        """Return the mean over λ of the absolute bias, and of the standard deviation.

        Args:
            penalties: The λ.
        """
        truth = [true_hypergradient(penalty) for penalty in penalties]
        bias = np.abs(np.subtract(self.mean, truth)).mean()
        return float(bias), float(np.mean(self.std))


def build_estimators(
    horizon: int, sigma: float, temperature: float
) -> dict[str, Callable[[int], hg.Estimator]]:
    """Return a function ``seed -> estimator`` for each estimator of the toolkit, by label.

    Those that take inner steps take ``horizon`` of them from x. EvoGrad's random candidates are
    sampled in :mod:`applications.illustration.replay`.

    Args:
        horizon: Number of inner steps T.
        sigma: σ of GuidedEvoGrad.
        temperature: τ of GuidedEvoGrad.
    """
    return {
        "EvoGrad, guided": lambda _: hg.GuidedEvoGrad(sigma, temperature),
        "Unrolled, 1 step": lambda _: hg.Unrolled(1),
        f"Unrolled, {horizon} steps": lambda _: hg.Unrolled(horizon),
        f"ForwardMode, {horizon} steps": lambda _: hg.ForwardMode(horizon),
        "Implicit, at x": lambda _: hg.Implicit(hg.GMRES(1)),
        f"Implicit, {horizon} steps": lambda _: hg.Implicit(hg.GMRES(1), steps=horizon),
        f"SOBA, {horizon} calls": lambda _: hg.SOBA(),
        f"Penalty, γ = 10, {horizon} steps": lambda _: hg.Penalty(10.0, steps=horizon),
        "OneStep": lambda _: hg.OneStep(),
        "FiniteDifference": lambda _: hg.FiniteDifference(),
        "SAMA": lambda _: hg.SAMA(),
        f"ForwardGradient, {horizon} steps": lambda seed: hg.ForwardGradient(horizon, seed=seed),
        f"EvolutionStrategies, {horizon} steps": lambda seed: hg.EvolutionStrategies(
            horizon, pairs=1, sigma=0.1, seed=seed
        ),
        f"PersistentES, {horizon} steps": lambda seed: hg.PersistentES(
            horizon, pairs=1, sigma=0.1, seed=seed
        ),
        f"NoiseReuseES, {horizon} steps": lambda seed: hg.NoiseReuseES(
            horizon, pairs=1, sigma=0.1, seed=seed
        ),
        "Adjoint": lambda _: hg.Adjoint(),
        "Reversible": lambda _: hg.Reversible(horizon),
        f"WarpGrad, {horizon} steps": lambda _: hg.WarpGrad(horizon),
        "FirstOrder": lambda _: hg.FirstOrder(horizon),
        "Reptile": lambda _: hg.Reptile(horizon),
        "Leap": lambda _: hg.Leap(horizon),
    }


def missing_estimators(estimators: Sequence[hg.Estimator]) -> list[str]:
    """Return the estimators of the toolkit that none of the given ones is an instance of.

    EvoGrad is not among them, whose estimates :mod:`applications.illustration.replay` takes.

    Args:
        estimators: Estimators.
    """
    present = {hg.EvoGrad, *(type(estimator) for estimator in estimators)}
    return [name for name, kind in all_estimators().items() if kind not in present]


def measure(
    estimators: Mapping[str, Callable[[int], hg.Estimator]],
    penalties: Sequence[float],
    *,
    lr: float,
    horizon: int,
    nodes: int,
    draws: int,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Spread]:
    """Call each estimator at x ~ N(0, 1) and take mean and deviation.

    The mean over x is taken by Gauss-Hermite quadrature, exact up to degree 2 ``nodes`` − 1: most
    estimates are quadratic in x, and their squares of degree 4. A random estimator is called once
    at each of ``draws`` quantiles of N(0, 1) instead. SOBA, which carries a variable from call to
    call, is called as often as others take steps, along the steps of x.

    Args:
        estimators: Functions ``seed -> estimator`` by label.
        penalties: Values of λ.
        lr: Learning rate of the inner steps, plain gradient descent.
        horizon: Calls of SOBA.
        nodes: Number of x for an estimator that is not random.
        draws: Calls of one that is, at each λ.
        seed: Seed of the draws.
        progress: Whether to show a progress bar.

    Returns:
        Spread by label; a note instead for an estimator that the problem does not admit.
    """
    inner = mt.inner.SGD(lr=lr)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    fixed = points, weights / math.sqrt(2 * math.pi)
    middles = [statistics.NormalDist().inv_cdf((i + 0.5) / draws) for i in range(draws)]
    drawn = np.array(middles), np.full(draws, 1 / draws)
    found = {}
    for label, build in tqdm(estimators.items(), desc="estimators", disable=not progress):
        try:
            at, share = drawn if build(0).traits.kind == "stochastic" else fixed
            found[label] = _spread(build, inner, penalties, horizon, at, share, seed)
        except (UnsupportedError, UnusedMetaParameterError) as error:
            found[label] = Spread(note=str(error))
    return found


def _spread(
    build: Callable[[int], hg.Estimator],
    inner: mt.inner.SGD,
    penalties: Sequence[float],
    horizon: int,
    points: np.ndarray,
    weights: np.ndarray,
    seed: int,
) -> Spread:
    means, deviations = [], []
    for row, penalty in enumerate(penalties):
        values = np.array(
            [
                _call(build(fold_in(seed, row, column)), inner, float(x), penalty, horizon)
                for column, x in enumerate(points)
            ]
        )
        mean = float(weights @ values)
        means.append(mean)
        deviations.append(math.sqrt(float(weights @ (values - mean) ** 2)))
    return Spread(tuple(means), tuple(deviations))


def _call(
    estimator: hg.Estimator, inner: mt.inner.SGD, x: float, penalty: float, horizon: int
) -> float:
    problem = build_problem(x, penalty)
    state = inner.init(problem)
    for _ in range(horizon if isinstance(estimator, hg.SOBA) else 1):
        result = estimator(problem, inner, state, [None] * estimator.horizon, None)
        state = result.state
    return float(result.gradient["value"])
