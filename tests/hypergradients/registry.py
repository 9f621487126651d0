"""Each estimator of the toolkit, as the suites that run over all of them make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from metatoolkit.hypergradients import (
    GMRES,
    MINRES,
    SAMA,
    SOBA,
    Adjoint,
    Estimator,
    EvoGrad,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    ForwardGradient,
    ForwardMode,
    GuidedEvoGrad,
    Implicit,
    Leap,
    NoiseReuseES,
    OneStep,
    Penalty,
    PersistentES,
    Reptile,
    Reversible,
    Unrolled,
    WarpGrad,
)
from metatoolkit.inner import GradientFlow, ReversibleMomentum
from metatoolkit.testing.bank import ProblemInstance

ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "EvoGrad": lambda: EvoGrad(2, 0.1, 0.5),
    "EvoGrad, streamed": lambda: EvoGrad(3, 0.1, 0.5, noise="gaussian", streamed=True),
    "EvoGrad, common constants": lambda: EvoGrad(2, 0.1, 0.5, constants="common"),
    "GuidedEvoGrad": lambda: GuidedEvoGrad(0.1, 0.5),
    "GuidedEvoGrad, σ chosen": lambda: GuidedEvoGrad(),
    "Unrolled(1)": lambda: Unrolled(1),
    "Unrolled(3)": lambda: Unrolled(3),
    "Unrolled(3), mixed mode": lambda: Unrolled(3, product="forward_over_reverse"),
    "Unrolled(5), tree": lambda: Unrolled(5, checkpoint="tree", arity=2),
    "Unrolled(4), truncated": lambda: Unrolled(4, truncation=2, checkpoint="sqrt"),
    "Unrolled(3), step weights": lambda: Unrolled(3, keep_graphs=3, step_weights=[0.2, 0.3, 0.5]),
    "Unrolled(3), first order": lambda: Unrolled(
        3, keep_graphs=3, step_weights=[0.2, 0.3, 0.5], first_order=True
    ),
    "ForwardMode(3)": lambda: ForwardMode(3),
    "ForwardMode(3), truncated, chunks": lambda: ForwardMode(3, chunk=1, truncation=2),
    "ForwardGradient(3)": lambda: ForwardGradient(3, samples=4),
    "Implicit, GMRES": lambda: Implicit(GMRES(10, 1e-12)),
    "Implicit, MINRES": lambda: Implicit(
        MINRES(5, 1e-12), steps=2, through="parameters", warm_start=True
    ),
    "OneStep": lambda: OneStep(),
    "OneStep, at θ": lambda: OneStep(lookahead=False),
    "FiniteDifference": lambda: FiniteDifference(),
    "SAMA": lambda: SAMA(),
    "SOBA": lambda: SOBA(0.3),
    "FirstOrder": lambda: FirstOrder(2),
    "Reptile": lambda: Reptile(2),
    "Reversible": lambda: Reversible(3),
    "Adjoint": lambda: Adjoint(2),
    "Leap": lambda: Leap(2),
    "WarpGrad": lambda: WarpGrad(2),
    "Penalty": lambda: Penalty(3.0, steps=2),
    "EvolutionStrategies": lambda: EvolutionStrategies(2, 2, 0.1),
    "PersistentES": lambda: PersistentES(2, 2, 0.1),
    "NoiseReuseES": lambda: NoiseReuseES(2, 3, 0.5, noise="sign"),
}


def learned_as_it_takes(case: ProblemInstance, estimator: Estimator) -> ProblemInstance:
    """Return the problem with the inner learner that the estimator takes, if it takes one alone."""
    if isinstance(estimator, Adjoint):
        return dataclasses.replace(case, inner=GradientFlow(0.1, 2))
    if isinstance(estimator, Reversible):
        return dataclasses.replace(case, inner=ReversibleMomentum(0.1, 0.8))
    return case
