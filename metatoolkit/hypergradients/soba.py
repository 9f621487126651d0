"""SOBA: θ, the linear system and λ all move by one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.adjoint_systems import carried_vector
from metatoolkit.hypergradients.arguments import check_through
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    fill_gradients,
    refuse_initial_state,
)
from metatoolkit.hypergradients.linearization import StepLinearization, Through
from metatoolkit.hypergradients.products import as_vector
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.solution_share import relative_residual
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class SOBA(Estimator):
    """SOBA, the single-loop method of Dagréou et al. 2022, arXiv 2201.13409.

    The solution of the linear system of implicit differentiation is a third variable beside θ and
    λ, and each outer step moves all three once. With Φ the inner learner's step on the batch, L
    the outer loss and s the inner state, a call returns ∂L/∂λ + uᵀ ∂Φ/∂λ and moves
    u ← u + α (∂L/∂s − (I − ∂Φ/∂s)ᵀ u), which for gradient descent with the learning rate ``lr`` is
    the paper's step for v = −``lr`` · u, at the rate α · ``lr``. u starts at zero, so that the
    first hypergradient is the direct one, and starts over for another problem; it needs no inner
    loop and no solver, and tends to the exact one where θ and λ come to rest.

    θ moves by the trainer's base step: before λ is seen to move with ``keep_lookahead=True``,
    which is the paper's joint step and takes no pass of its own, else after it. Cost with F one
    forward pass: 12 F, one product with second derivatives for both u and λ. Memory: the graph of
    one step, about three times that of an ordinary training step, and u.

    Args:
        step_size: α, in units of the inner step.
        through: ``"state"`` takes the optimizer's slots as variables of Φ, ``"parameters"`` as
            constants; see :class:`Implicit`.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> SOBA(step_size=0.5, through="parameters").horizon
        1
    """

    traits = Traits(
        kind="iterative",
        computes="derivative at the inner optimum, as θ, u and λ come to rest",
        assumes="a contracting inner step and slow λ; second derivatives",
        passes="12 F",
        memory="graph of one step and u",
        paper="Dagréou et al. 2022, arXiv 2201.13409",
    )
    carries = True

    def __init__(self, step_size: float = 1.0, through: Through = "state") -> None:
        if not 0 < step_size < float("inf"):
            raise ConfigurationError(f"step_size is {step_size}; a number above 0 is needed.")
        check_through(through)
        self.step_size = step_size
        self.through: Through = through
        self._carried: Tensor | None = None
        self._used: Tensor | None = None
        # The problem's identity; after a checkpoint the first problem that comes is taken for it.
        self._owner: str | None = None

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the hypergradient with the u that is carried, and move u; see the class.

        The residual in its cost is that of the u it was made with.

        Raises:
            NonFiniteError: A loss is not finite, or u is not any more.
        """
        (batch,) = train_batches
        why = "takes an inner optimum, where it is forgotten"
        refuse_initial_state(problem, state, "SOBA", why)
        meta = problem.meta_leaves()
        names = list(meta)
        valid_loss, adjoint, direct = finite_outer_gradient(problem, state, meta, valid_batch)
        step = StepLinearization(problem, inner, state, meta, batch, self.through)
        rhs = step.flatten(adjoint[: len(step.names)])
        carried = carried_vector("SOBA", self._carried, rhs)
        other = self._owner not in (None, problem.identity)
        u = torch.zeros_like(rhs) if carried is None or other else carried
        image, through = step.pull_back(u)
        residual = rhs - image
        moved = u + self.step_size * residual
        step.check("the linear system's variable", moved)
        gradient = fill_gradients(
            problem, add_gradients(names, direct, through), "train_loss and valid_loss"
        )
        self._carried, self._used, self._owner = moved, u, problem.identity
        return Hypergradient(
            gradient=gradient,
            valid_loss=valid_loss,
            state=step.after,
            cost=Cost(
                forward=2,
                backward=2,
                hvp=1,
                residual=relative_residual(residual, rhs),
                iterations=1,
            ),
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return u, if there is one."""
        if self._carried is None:
            return {}
        return {"u": self._carried}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if set(state_dict) - {"u"}:
            super().load_state_dict(state_dict)
        self._carried = self._used = state_dict.get("u")
        self._owner = None

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
        """Return L(s, λ) + uᵀ Φ(s, λ) with the u of the last call held."""
        (batch,) = train_batches
        loss = outer_loss(problem, state, meta, valid_batch)
        if self._used is None or self._owner not in (None, problem.identity):
            return loss
        after, _ = inner.step(problem, state, meta, batch)
        moved = after.tensors() if self.through == "state" else list(after.parameters.values())
        vector = as_vector(moved)
        return loss + self._used.to(vector).dot(vector)
