"""Reptile: the initial state moves towards where the inner steps lead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient, Traits, check_finite
from metatoolkit.hypergradients.first_order import pulled_back
from metatoolkit.hypergradients.products import as_real
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class Reptile(Estimator):
    """Reptile (Nichol et al. 2018, arXiv 1803.02999): θ_0 − θ_T for a hypergradient.

    For λ that sets the initial state θ_0 it is ∂θ_0/∂λᵀ (θ_0 − θ_T), with θ_T reached by T inner
    steps: the derivative of ½ ‖θ_0 − θ_T‖² with θ_T held. It sees the outer loss nowhere; the
    validation batch only gives the value that is reported, so that the training batches should
    hold all data of a task. For small learning rates ``lr`` and T > 1 its mean over batches is
    that of ``lr`` · T gradients of the training loss and, in the next order, MAML's.

    Cost with F one forward pass: (3 T + 1) F. Memory: that of an ordinary training step.

    Args:
        steps: Number of inner steps T.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> Reptile(steps=5).horizon
        5
    """

    separable = adds_up = True
    traits = Traits(
        kind="approximate",
        computes="way of the inner steps, from their end to the initial state",
        assumes="λ as the initial state; training batches of the whole task",
        passes="(3 T + 1) F",
        memory="graph of one pass",
        paper="Nichol et al. 2018, arXiv 1803.02999",
    )

    def __init__(self, steps: int = 5) -> None:
        require_steps(steps)
        self.horizon = steps

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return θ_0 − θ_T pulled back to λ; see the class.

        Raises:
            UnsupportedError: λ does not set this state, or a part of it acts elsewhere alone.
        """
        meta = problem.meta_leaves()
        final = roll_out(problem, inner, state, meta, train_batches)
        with torch.no_grad():
            start = inner.enter(problem, state, meta).parameters
            way = {name: start[name] - tensor for name, tensor in final.parameters.items()}
        check_finite({f"the way of {name!r}": tensor for name, tensor in way.items()})
        batches = train_batches[-1], valid_batch
        gradient, valid_loss = pulled_back(
            problem, inner, (state, final), meta, way, batches, "Reptile"
        )
        steps = len(train_batches)
        return Hypergradient(
            gradient=gradient,
            valid_loss=valid_loss,
            state=final,
            cost=Cost(forward=steps + 1, backward=steps),
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
        """Return ½ ‖θ_0(λ) − θ_T‖², with θ_T that of the problem's own λ."""
        del valid_batch
        final = roll_out(problem, inner, state, problem.meta_parameters(), train_batches)
        with torch.no_grad():
            start = inner.enter(problem, state, meta).parameters
            parts = [as_real(start[n] - t).square().sum() for n, t in final.parameters.items()]
            return torch.stack(parts).sum() / 2
