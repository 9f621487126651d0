"""The hypergradient through a gradient flow, by its adjoint equation along stored states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import (
    ConfigurationError,
    UnsupportedError,
)
from metatoolkit.hypergradients.arguments import require_choice, require_steps
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    fill_gradients,
)
from metatoolkit.hypergradients.first_order import initial_product
from metatoolkit.hypergradients.products import Adjoint as Gains
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.stored_flow import StoredFlow
from metatoolkit.hypergradients.trajectory import outer_gradient, outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.gradient_flow import GradientFlow
from metatoolkit.inner.traits import is_said_of
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

_METHODS = ("discrete", "continuous")
_FIXED = ("heun", "euler")
_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@estimators.register()
class Adjoint(Estimator):
    """The adjoint of :class:`metatoolkit.inner.GradientFlow` (A-MAML, Li et al. 2023).

    "Meta-Learning with Adjoint Methods" (arXiv 2110.08432). The K + 1 states of the flow are
    stored, without any graph. The adjoint p = ∂L_valid/∂θ(t) obeys dp/dt = H p with H the Hessian
    of the training loss, and ends in the gradient of the outer loss; it runs backward over the
    states, of which one after the other is differentiated again. λ may act in the initial state,
    where p is its derivative, in the losses and in the time.

    ``method`` says whose adjoint it is:

    - ``"discrete"``: that of the K steps which were taken: the derivative of
      :class:`Unrolled`, to rounding. With F one forward pass: 12 K F, and 24 K F where the flow is
      taken with Heun, and 3 F for the outer loss.
    - ``"continuous"``: that of the flow itself, whose equation is solved by ``solver``: from state
      to state by ``"heun"`` with an error of order 2 in h and 18 K F, or ``"euler"`` with one of
      order 1 and 12 K F; or by a method of torchdiffeq (extra ``ode``) such as ``"dopri5"``, which
      chooses its steps by ``tolerance``, with cubics between the states. The states have the
      error of the flow's own solver; give that Heun, too. The flow is never integrated backward,
      which gradient flows do not admit: what has decayed explodes.

    The continuous adjoint is too stiff for K steps where h ‖H p‖ passes 2 ‖p‖, or where torchdiffeq
    would need more than 20 steps for each state, which is an error. With ``solver`` of fixed steps
    ``details["stiffness"]`` is the largest h ‖H p‖ / ‖p‖ that was met. Memory: K + 1 times θ and
    the graph of one step; for several flows one after the other, those of each.

    Args:
        steps: Number of inner steps, each a whole flow.
        method: Whose adjoint is computed.
        solver: How the continuous adjoint is solved.
        tolerance: Relative error of a step of torchdiffeq; read with its solvers only.

    Raises:
        ConfigurationError: A number is out of range, or a name is unknown.

    Example:
        >>> Adjoint(method="continuous").traits.kind
        'approximate'
    """

    complex_parameters = False
    separable: bool = True
    traits = Traits(
        kind="exact",
        computes="derivative through the K steps of a gradient flow",
        assumes="GradientFlow; second derivatives of the training loss",
        passes="12 K F, 24 K F with Heun; 3 F for the outer loss",
        memory="K + 1 times θ and the graph of one step",
        paper="Li et al. 2023, arXiv 2110.08432",
    )

    def __init__(
        self,
        steps: int = 1,
        method: Literal["discrete", "continuous"] = "discrete",
        solver: Literal["heun", "euler", "dopri5", "dopri8", "bosh3", "adaptive_heun"] = "heun",
        tolerance: float = 1e-6,
    ) -> None:
        require_steps(steps)
        require_choice("method", method, _METHODS)
        require_choice("solver", solver, _FIXED + _ADAPTIVE)
        self.horizon = steps
        self.method = method
        if not 0 < tolerance < 1:
            raise ConfigurationError(f"tolerance is {tolerance}; accepted: above 0 and below 1.")
        self.solver = solver
        self.tolerance = tolerance
        if method == "continuous":
            # How stiff one flow is, the norm of several would hide.
            self.separable = False
            self.traits = dataclasses.replace(
                type(self).traits,
                kind="approximate",
                computes="derivative through a gradient flow, to its discretization",
                assumes="GradientFlow that is not stiff; second derivatives of the training loss",
                passes="18 K F with Heun, 12 K F with Euler; 3 F for the outer loss",
            )

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the derivative of the outer loss after the flows; see the class.

        Raises:
            UnsupportedError: The inner learner is no gradient flow.
            NonFiniteError: The flow is not finite at its end.
            StiffnessError: The continuous adjoint is too stiff for its steps.
        """
        if not isinstance(inner, GradientFlow) or not is_said_of(inner, "flow_step"):
            raise UnsupportedError(
                "Adjoint needs an inner learner that follows a gradient flow, whose values it "
                f"stores, and {type(inner).__name__} is none; use GradientFlow(time=lr * steps, "
                "steps=steps), or Unrolled."
            )
        meta, start = problem.meta_leaves(), state
        flows = []
        for batch in train_batches:
            flows.append(StoredFlow(problem, inner, state, meta, batch))
            state = flows[-1].final
        valid_loss, found, direct = outer_gradient(problem, state, meta, valid_batch)
        adjoint = [
            torch.zeros_like(point) if part is None else part
            for point, part in zip(state.parameters.values(), found, strict=True)
        ]
        names = list(meta)
        total = add_gradients(names, direct)
        passes, products, stiffness = 1, 0, 0.0
        for flow in reversed(flows):
            if self.method == "discrete":
                adjoint, part = flow.discrete(adjoint)
            else:
                adjoint, part = self._continuous(flow, adjoint)
            total = add_gradients(names, list(total.values()), part)
            passes, products = passes + flow.passes, products + flow.products
            stiffness = max(stiffness, flow.stiffness)
        cotangents = dict(zip(start.parameters, adjoint, strict=True))
        through = initial_product(problem, start, meta, cotangents)
        total = add_gradients(names, list(total.values()), through)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(forward=passes, backward=passes, hvp=products),
            details={} if self.method == "discrete" else {"stiffness": stiffness},
        )

    def _continuous(self, flow: StoredFlow, adjoint: list[Tensor]) -> tuple[list[Tensor], Gains]:
        if self.solver in _FIXED:
            return flow.continuous(adjoint, self.solver)
        return flow.integrated(adjoint, self.solver, self.tolerance)

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
        """Return the outer loss after the flows from ``state`` under ``meta``.

        For the continuous adjoint they are taken with Heun in four times as many steps.
        """
        if self.method == "continuous" and isinstance(inner, GradientFlow):
            inner = inner.with_steps(4 * inner.steps, "heun")
        state = roll_out(problem, inner, state, meta, train_batches)
        return outer_loss(problem, state, meta, valid_batch)
