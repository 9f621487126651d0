"""One-step hypergradients: the inverse of the inner Hessian replaced by the identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    fill_gradients,
)
from metatoolkit.hypergradients.learning_rates import learning_rates
from metatoolkit.hypergradients.linearization import (
    StepLinearization,
)
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class OneStep(Estimator):
    """The derivative through the last inner step alone, θ before it held.

    T1−T2 (Luketina et al. 2016, arXiv 1511.06727): λ descends the outer loss after one
    inner step, and the dependence of θ on λ before that step is dropped. With Φ the inner
    learner's step and v the gradient of the outer loss L in θ it is ∂L/∂λ + vᵀ ∂Φ/∂λ; for SGD
    −``lr`` · vᵀ ∂²L_T/∂θ∂λ. Beside the implicit hypergradient it takes ``lr`` · I for the inverse
    of the Hessian H, or the identity for that of I − ∂Φ, with a relative error of the order of the
    contraction rate of Φ (Bolte et al. 2023, arXiv 2305.13768). With
    ``inverse="identity"`` it takes I for the inverse of H, which is 1/``lr`` times as much.

    Cost with F one forward pass: 10 F, with λ at the input 11 F. Memory: the graph of one step,
    about three times that of an ordinary training step.

    Args:
        lookahead: Whether v is taken after the step, as in T1−T2, which is the exact derivative
            of the outer loss after one step from a θ that does not depend on λ; or at θ itself,
            as at a fixed point.
        inverse: ``"step"`` or ``"identity"``, as above; the latter needs SGD.

    Raises:
        ConfigurationError: ``inverse`` is unknown.

    Example:
        >>> OneStep(lookahead=False, inverse="identity").horizon
        1
    """

    separable = True
    traits = Traits(
        kind="approximate",
        computes="derivative through the last inner step alone",
        assumes="a strongly contracting inner step; second derivatives",
        passes="10 F",
        memory="graph of one step",
        paper="Luketina et al. 2016, arXiv 1511.06727",
    )

    def __init__(
        self, lookahead: bool = True, inverse: Literal["step", "identity"] = "step"
    ) -> None:
        if inverse not in ("step", "identity"):
            raise ConfigurationError(f"inverse is {inverse!r}; accepted: 'step', 'identity'.")
        self.lookahead = lookahead
        self.inverse = inverse

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the one-step hypergradient; see the class.

        Raises:
            UnsupportedError: The inverse of the learning rate is asked of another learner than SGD.
        """
        (batch,) = train_batches
        meta = problem.meta_leaves()
        rates = learning_rates(problem, inner, state) if self.inverse == "identity" else None
        step = StepLinearization(problem, inner, state, meta, batch, "parameters")
        point = step.after if self.lookahead else state
        valid_loss, adjoint, direct = finite_outer_gradient(problem, point, meta, valid_batch)
        cotangent = step.flatten(adjoint[: len(step.names)])
        if rates is not None:
            cotangent = cotangent / step.flatten(list(rates.values()))
        through = step.meta_product(cotangent)
        total = add_gradients(list(meta), direct, through)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=step.after,
            cost=Cost(forward=2, backward=2, hvp=1),
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
        """Return the outer loss at θ, or after one step, moved by how much λ changes that step."""
        (batch,) = train_batches
        after, _ = inner.step(problem, state, meta, batch)
        if self.lookahead and self.inverse == "step":
            return outer_loss(problem, after, meta, valid_batch)
        present, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        rates = learning_rates(problem, inner, state) if self.inverse == "identity" else {}
        point = present if self.lookahead else state
        with torch.no_grad():
            parameters = {
                name: tensor
                + (after.parameters[name] - present.parameters[name]) / rates.get(name, 1.0)
                for name, tensor in point.parameters.items()
            }
        moved = dataclasses.replace(point, parameters=parameters)
        return outer_loss(problem, moved, meta, valid_batch)
