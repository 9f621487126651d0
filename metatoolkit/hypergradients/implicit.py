"""The implicit hypergradient at a fixed point of the inner step, by a solver of linear systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.adjoint_systems import AdjointSystems, carried_vector
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
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.linear_solvers import LinearSolver
from metatoolkit.hypergradients.linearization import StepLinearization, Through
from metatoolkit.hypergradients.products import as_vector
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.slots import refuse_complex
from metatoolkit.inner.traits import is_linear_in_gradient
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors

_FIXED_POINT_STEPS = 100_000
_FIXED_POINT_TOLERANCE = 1e-14


@estimators.register()
class Implicit(Estimator):
    """Implicit differentiation of the fixed point s* = Φ(s*, λ) of an inner step.

    With s the parameters and the optimizer's slots, the derivative of the outer loss L at s*(λ) is
    ∂L/∂λ + uᵀ ∂Φ/∂λ with (I − ∂Φ/∂s)ᵀ u = ∂L/∂s (Grazzi et al. 2020, arXiv 2006.16218; for
    gradient descent Pedregosa 2016, arXiv 1602.02355). Φ is the inner learner's own step on one
    batch with one dropout mask and the buffers held, and any regular map will do: whether s moves
    by gradient descent, with momentum or by Adam. The estimate is exact at a fixed point of Φ with
    the system solved; away from one it has an error of the size of the distance. What the loss
    detaches is a constant of Φ.

    Solvers for symmetric systems (ConjugateGradient, MINRES, Nystrom) need plain gradient steps,
    and see the system H w = ∂L/∂s with H the Hessian of the training loss, weight decay included,
    and w = D u with D the learning rates, one per group. The others see I − ∂Φᵀ itself. Where some
    groups ascend and others descend, H is indefinite at the fixed point: MINRES takes it.

    Cost with F one forward pass: 3 F for each step taken, 6 F for the step that is linearized and
    the outer loss, and 6 F for each product with (I − ∂Φ)ᵀ: one for each iteration and one for
    the true residual with the derivative in λ; NormalEquationCG takes 8 F more per iteration.
    Memory: the graph of one step, three to four times that of an ordinary training step (twelve
    for NormalEquationCG), and the solver's vectors.

    Args:
        solver: Solver of the linear system, for instance ``ConjugateGradient(iterations=20)``.
        steps: Inner steps to take first, one batch each; the last batch is that of Φ. With 0 the
            state is taken as it is given, with one batch for Φ.
        through: ``"state"`` takes the slots as variables of Φ; ``"parameters"`` as constants,
            which makes SGD with momentum a plain gradient step. That is right where the fixed
            points of the update are the zeros of the gradient whatever the slots.
        warm_start: Whether u is carried from call to call as the solver's first iterate, as long
            as these are calls on one problem.
        fresh: Whether a solver that draws vectors, such as Nystrom, draws anew in a call at a
            state that was there before; else equal states get equal draws.

    Raises:
        ConfigurationError: An argument is out of range, or the solver can make no use of a warm
            start.

    Example:
        >>> from metatoolkit.hypergradients.linear_solvers import ConjugateGradient
        >>> Implicit(ConjugateGradient(iterations=20), steps=100).horizon
        100
    """

    traits = Traits(
        kind="iterative",
        computes="derivative of the outer loss at the fixed point of the inner step",
        assumes="θ near a fixed point with I − ∂Φ regular; second derivatives",
        passes="(3 T + 6) F + 6 F per product",
        memory="graph of one step and the solver's vectors",
        paper="Grazzi et al. 2020, arXiv 2006.16218",
    )

    def __init__(
        self,
        solver: LinearSolver,
        steps: int = 0,
        through: Through = "state",
        warm_start: bool = False,
        fresh: bool = True,
    ) -> None:
        if not isinstance(solver, LinearSolver):
            raise ConfigurationError(
                f"solver is {solver!r}; pass a solver, for instance ConjugateGradient(20)."
            )
        if steps < 0:
            raise ConfigurationError(f"steps is {steps}; at least 0 is needed.")
        if warm_start and not solver.warm_startable:
            raise ConfigurationError(
                f"warm_start=True, but {type(solver).__name__} does not iterate; leave it False."
            )
        check_through(through)
        self.solver = solver
        self.steps = steps
        self.through: Through = through
        self.warm_start = self.carries = warm_start
        self.horizon = max(1, steps)
        self._carried: Tensor | None = None
        # The problem's identity; after a checkpoint the first problem that comes is taken for it.
        self._owner: str | None = None
        # Tasks side by side would draw another time than tasks one by one.
        self.separable = not solver.random
        if solver.random:
            self._draws = Draws(fresh)

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the implicit hypergradient; see the class.

        Its cost holds the true residual norm(∂L/∂s − (I − ∂Φ)ᵀ u) / norm(∂L/∂s), computed anew
        from u and for the system without damping; its details norm(Φ(s) − s) / norm(s) as
        ``distance``, and those of the solver. Where u of a solver that does not iterate is worse
        than zero, the multiple of it with the least residual takes its place, by the factor
        ``share``.

        Raises:
            UnsupportedError: The solver does not work for this inner learner at this state, or
                returns what is worse than zero, or nothing but zero.
        """
        if self.steps == 0:
            why = "takes an inner optimum, where it is forgotten"
            refuse_initial_state(problem, state, "Implicit with steps=0", why)
        meta = problem.meta_leaves()
        key = state.key if self._draws is None else self._draws.advance(state)
        # Before a pass is spent on a combination that cannot work.
        if self.solver.symmetric:
            self._refuse_other_maps(inner, state)
        state = roll_out(problem, inner, state, meta, train_batches[: self.steps])
        valid_loss, adjoint, direct = finite_outer_gradient(problem, state, meta, valid_batch)
        step = StepLinearization(problem, inner, state, meta, train_batches[-1], self.through)
        rhs = step.right_hand_side(adjoint)
        factor = step.learning_rates() if self.solver.symmetric else None
        if factor is not None and bool((factor < 0).all()):
            # An ascent of L is a descent of −L, whose Hessian is the one that shall be definite.
            factor = -factor
        start = carried_vector("Implicit", self._carried, rhs)
        if self._owner not in (None, problem.identity):
            start = None
        systems = AdjointSystems(step, problem.blocks, factor)
        drawn = fold_in(key, state.step, Stream.LINEAR_SOLVER)
        solved, through = systems.solve(self.solver, rhs, drawn, start)
        if self.warm_start:
            self._carried, self._owner = solved[0].vector, problem.identity
        passes = self.steps + 2
        costs = [
            Cost(passes, passes, one.jvp, one.hvp, one.residual, one.iterations) for one in solved
        ]
        details = dict(solved[0].details) if problem.blocks == 1 else {"costs": costs}
        names = list(meta)
        return Hypergradient(
            gradient=fill_gradients(
                problem, add_gradients(names, direct, through), "train_loss and valid_loss"
            ),
            valid_loss=valid_loss,
            state=state,
            cost=costs[0],
            details=details | {"distance": _distance(step, state)},
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the warm start, if there is one, and which draw comes next."""
        carried = {} if self._carried is None else {"warm_start": self._carried}
        return {**super().state_dict(), **carried}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = ("warm_start",) if self.warm_start else ()
        super().load_state_dict({n: v for n, v in state_dict.items() if n not in own})
        self._carried, self._owner = state_dict.get("warm_start"), None

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
        """Return the outer loss at the fixed point of Φ that iterating it leads to.

        Φ is that of :meth:`estimate`: one batch, one mask, the buffers held.

        Raises:
            UnsupportedError: The iteration does not converge.
        """
        present = problem.meta_parameters()
        state = roll_out(problem, inner, state, present, train_batches[: self.steps])
        for _ in range(_FIXED_POINT_STEPS):
            after, _ = inner.step(problem, state, meta, train_batches[-1])
            pairs = zip(after.tensors(), state.tensors(), strict=True)
            moved = max(float((one - other).abs().max()) for one, other in pairs)
            largest = max(float(tensor.abs().max()) for tensor in after.tensors())
            state = state.with_tensors(after.tensors())
            if moved <= _FIXED_POINT_TOLERANCE * max(1.0, largest):
                break
        else:
            raise UnsupportedError(
                f"{_FIXED_POINT_STEPS} inner steps on one batch reach no fixed point, so that "
                "there is nothing to compare an implicit hypergradient with; take an inner "
                "learner that contracts, such as SGD with a lower learning rate."
            )
        return outer_loss(problem, state, meta, valid_batch)

    def _refuse_other_maps(self, inner: InnerLearner, state: InnerState) -> None:
        """Raise unless the step is θ − D g(θ), which makes the system symmetric."""
        told = is_linear_in_gradient(inner)
        if told and not (state.optimizer and self.through == "state"):
            for name, parameter in state.parameters.items():
                refuse_complex(name, parameter)
            return
        raise UnsupportedError(
            f"{type(self.solver).__name__} needs a symmetric system, which only a plain gradient "
            f"step gives, but the inner learner is {type(inner).__name__}"
            f"{' with momentum' if told else ''}. Use FixedPoint, NormalEquationCG "
            "or GMRES, which take any map; or SGD without momentum; or, for SGD with momentum, "
            "through='parameters'."
        )


def _distance(step: StepLinearization, state: InnerState) -> Tensor:
    """Return how far the state moves in a step, relative to its size."""
    before, after = (as_vector(at.tensors(), step.dtype) for at in (state, step.after))
    size = before.norm().clamp_min(torch.finfo(step.dtype).tiny)
    return (after - before).norm() / size
