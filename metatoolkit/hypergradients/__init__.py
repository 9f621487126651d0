"""Hypergradient estimators: how the derivative of the outer loss in λ is obtained.

Example:
    >>> import torch, metatoolkit as mt
    >>> model, meta = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    >>> for module, value in ((model, 1.0), (meta, 0.5)):
    ...     _ = torch.nn.init.constant_(module.weight, value)
    >>> problem = mt.BilevelProblem(
    ...     model,
    ...     meta,
    ...     train_loss=lambda model, meta, batch: (meta.weight * (model.weight - batch) ** 2).sum(),
    ...     valid_loss=lambda model, meta, batch: (model.weight**2).sum(),
    ... )
    >>> inner = mt.inner.SGD(lr=0.1)
    >>> state = inner.init(problem)
    >>> estimator = mt.hypergradients.build("Unrolled", steps=1)
    >>> result = estimator(problem, inner, state, train_batches=[3.0], valid_batch=None)
    >>> result.gradient["weight"]  # θ after the step is 1 + 0.4 λ = 1.2, and 2 · 1.2 · 0.4 = 0.96
    tensor([[0.9600]])
    >>> result.cost.hvp
    1
"""

import importlib
from typing import Any

from metatoolkit.errors import warn_renamed
from metatoolkit.hypergradients.adjoint import Adjoint as Adjoint
from metatoolkit.hypergradients.base import Cost as Cost
from metatoolkit.hypergradients.base import Estimator as Estimator
from metatoolkit.hypergradients.base import Hypergradient as Hypergradient
from metatoolkit.hypergradients.base import Traits as Traits
from metatoolkit.hypergradients.evograd import EvoGrad as EvoGrad
from metatoolkit.hypergradients.evolution_strategies import (
    EvolutionStrategies as EvolutionStrategies,
)
from metatoolkit.hypergradients.finite_difference import FiniteDifference as FiniteDifference
from metatoolkit.hypergradients.first_order import FirstOrder as FirstOrder
from metatoolkit.hypergradients.forward_gradient import ForwardGradient as ForwardGradient
from metatoolkit.hypergradients.forward_mode import ForwardMode as ForwardMode
from metatoolkit.hypergradients.guided_evograd import GuidedEvoGrad as GuidedEvoGrad
from metatoolkit.hypergradients.implicit import Implicit as Implicit
from metatoolkit.hypergradients.instance import ProblemInstance as ProblemInstance
from metatoolkit.hypergradients.leap import Leap as Leap
from metatoolkit.hypergradients.linear_solvers import GMRES as GMRES
from metatoolkit.hypergradients.linear_solvers import MINRES as MINRES
from metatoolkit.hypergradients.linear_solvers import ConjugateGradient as ConjugateGradient
from metatoolkit.hypergradients.linear_solvers import FixedPoint as FixedPoint
from metatoolkit.hypergradients.linear_solvers import LinearSolver as LinearSolver
from metatoolkit.hypergradients.linear_solvers import Neumann as Neumann
from metatoolkit.hypergradients.linear_solvers import NormalEquationCG as NormalEquationCG
from metatoolkit.hypergradients.linear_solvers import Nystrom as Nystrom
from metatoolkit.hypergradients.noise_reuse_es import NoiseReuseES as NoiseReuseES
from metatoolkit.hypergradients.one_step import OneStep as OneStep
from metatoolkit.hypergradients.penalty import Penalty as Penalty
from metatoolkit.hypergradients.persistent_es import PersistentES as PersistentES
from metatoolkit.hypergradients.registry import estimators as estimators
from metatoolkit.hypergradients.reptile import Reptile as Reptile
from metatoolkit.hypergradients.reversible import Reversible as Reversible
from metatoolkit.hypergradients.sama import SAMA as SAMA
from metatoolkit.hypergradients.soba import SOBA as SOBA
from metatoolkit.hypergradients.unrolled import Unrolled as Unrolled
from metatoolkit.hypergradients.warp_grad import WarpGrad as WarpGrad

build = estimators.build
register = estimators.register

_MOVED = (
    "EstimatorComparison",
    "HypergradientCheck",
    "check_hypergradient",
    "compare_estimators",
)


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(f"metatoolkit.hypergradients.{name}", f"metatoolkit.diagnostics.{name}")
    return getattr(importlib.import_module("metatoolkit.diagnostics"), name)
