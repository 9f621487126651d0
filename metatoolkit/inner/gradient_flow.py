"""Gradient flow: the inner learner that follows dθ/dt = −∇L for a time, by small steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.groups import Group
from metatoolkit.inner.hyperparameters import Hyperparameter, add_scaled
from metatoolkit.inner.registry import learners
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors, with_leaves

_SOLVERS = ("euler", "heun")


@learners.register()
class GradientFlow(InnerLearner):
    """The flow dθ/dt = −∇L(θ) of one batch over a time T, in K steps of a solver.

    It is the inner problem of A-MAML (Li et al. 2023, "Meta-Learning with Adjoint Methods", arXiv
    2110.08432). One inner step takes the whole flow: K steps of size h = T/K, all with the batch,
    the dropout masks and the buffers of the first. With g the gradient:

    - ``"euler"``: θ ← θ − h g(θ), which is K steps of gradient descent, of order 1 in h;
    - ``"heun"``: θ ← θ − h/2 (g(θ) + g(θ − h g(θ))), of order 2.

    Cost with F one forward pass: 3 K F, and 6 K F with Heun. Where a graph is asked for, as
    :class:`metatoolkit.hypergradients.Unrolled` does, it holds all K steps;
    :class:`metatoolkit.hypergradients.Adjoint` does without it. Memory beyond θ: none.

    Args:
        time: T, that of all parameters; a group may have another, which is another speed.
        steps: Number of steps K.
        solver: How a step is taken.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range, or the solver is unknown.

    Example:
        >>> GradientFlow(time=2.0, steps=200)
        GradientFlow(time=2.0, maximize=False, steps=200, solver=euler, groups=0)
    """

    linear_in_gradient = False
    coordinatewise = True

    def __init__(
        self,
        time: Hyperparameter,
        steps: int = 100,
        solver: Literal["euler", "heun"] = "euler",
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__({"time": time, "maximize": maximize}, groups)
        if steps < 1:
            raise ConfigurationError(f"steps is {steps}; a number of at least 1 is needed.")
        if solver not in _SOLVERS:
            raise ConfigurationError(f"solver is {solver!r}; accepted: {', '.join(_SOLVERS)}.")
        self.steps = steps
        self.solver = solver

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return no optimizer state."""
        return {}

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter after one of the K steps along a gradient."""
        return add_scaled(parameter, gradient, -hyperparameters["time"] / self.steps), {}

    def flow_step(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        create_graph: bool = False,
    ) -> tuple[InnerState, Tensor]:
        """Take one of the K steps; what λ sets of the initial state must be in it.

        Args:
            problem: Problem whose ``train_loss`` is descended.
            state: State before the step.
            meta: Meta-parameters by name.
            batch: Training batch.
            create_graph: Whether the result is differentiable in the parameters of ``state`` that
                require a gradient and in ``meta``.

        Returns:
            The state after the step, which counts as if the flow had ended there, and the training
            loss before it. Cost: 3 F, and 6 F with Heun.
        """
        state = with_leaves(state, create_graph)
        loss, gradients, buffers = self.gradients(problem, state, meta, batch, create_graph)
        with torch.set_grad_enabled(create_graph):
            after = self.apply(problem, state, meta, gradients)
        if self.solver == "heun":
            ahead = with_leaves(state.replaced(parameters=after.parameters), create_graph)
            _, others, _ = self.gradients(problem, ahead, meta, batch, create_graph)
            with torch.set_grad_enabled(create_graph):
                mean = {name: (g + others[name]) / 2 for name, g in gradients.items()}
                after = self.apply(problem, state, meta, mean)
        after = after.replaced(buffers=buffers)
        return (after, loss) if create_graph else (after.detach(), loss.detach())

    @override
    def step(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        create_graph: bool = False,
    ) -> tuple[InnerState, Tensor]:
        """Take the whole flow; see :class:`InnerLearner` and the class."""
        if not create_graph:
            meta = {name: tensor.detach() for name, tensor in meta.items()}
        with torch.set_grad_enabled(create_graph):
            first = at = self.enter(problem, state, meta)
        after, told = at, None
        for _ in range(self.steps):
            moved, loss = self.flow_step(problem, at, meta, batch, create_graph)
            if told is None:
                after, told = moved, loss
            at = first.replaced(parameters=moved.parameters)
        assert told is not None
        return after.replaced(parameters=at.parameters), told

    def with_steps(self, steps: int, solver: Literal["euler", "heun"]) -> GradientFlow:
        """Return a learner that follows the same flow in other steps.

        Args:
            steps: Number of steps K.
            solver: How a step is taken.
        """
        other = copy.copy(self)
        other.steps, other.solver = steps, solver
        return other

    @override
    def options(self) -> dict[str, Any]:
        """Return the number of steps and the solver."""
        return {"steps": self.steps, "solver": self.solver}
