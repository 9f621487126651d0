"""A gradient flow whose states are stored, and the adjoint that runs backward over them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import NonFiniteError, StiffnessError, optional_import
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.products import Adjoint as Gains
from metatoolkit.hypergradients.products import (
    add_adjoints,
    as_vector,
    norm,
    scaled,
    vector_jacobian_product,
)
from metatoolkit.inner.gradient_flow import GradientFlow
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import within

# Beyond it explicit steps of first and second order grow where the equation decays.
_STABLE = 2.0
# Steps that a solver with its own steps may take for each stored state.
_MOST = 20


class StoredFlow:
    """A flow whose states are stored, and its adjoint.

    Args:
        problem: The bilevel problem.
        inner: The gradient flow.
        state: Detached state to start from.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.

    Attributes:
        points: θ at the K + 1 times.
        final: State after the flow.
        passes: Forward passes so far.
        products: Products with second derivatives so far.
        stiffness: Largest h ‖H p‖ / ‖p‖ that the continuous adjoint met.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: GradientFlow,
        state: InnerState,
        meta: Tensors,
        batch: Any,
    ) -> None:
        self._problem, self._inner, self._meta, self._batch = problem, inner, meta, batch
        fixed = {name: tensor.detach() for name, tensor in meta.items()}
        self._first = inner.enter(problem, state, fixed).detach()
        self.points = [self._first.parameters]
        for index in range(inner.steps):
            moved, _ = inner.flow_step(problem, self._at(index), fixed, batch)
            self.points.append(moved.parameters)
            if index == 0:
                self.final = moved
        self.final = self.final.replaced(parameters=self.points[-1])
        self.passes = (2 if inner.solver == "heun" else 1) * inner.steps
        self.products, self.stiffness = 0, 0.0
        for name, tensor in self.points[-1].items():
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"the gradient flow is not finite at its end (parameter {name!r}): the loss is "
                    f"NaN or infinite, or {inner.steps} steps of {inner.solver} are too few. Check "
                    "the batch, give GradientFlow(steps=) more, or a shorter time."
                )

    def _at(self, index: int) -> InnerState:
        return self._first.replaced(parameters=self.points[index])

    def discrete(self, adjoint: list[Tensor]) -> tuple[list[Tensor], Gains]:
        """Return the adjoint before the K steps, and the derivative in λ.

        Args:
            adjoint: Derivative in the parameters after them. Cost: 9 K F, twice that with Heun.
        """
        total: Gains = [None] * len(self._meta)
        for index in reversed(range(self._inner.steps)):
            step = self._linearized(index, self._inner)
            adjoint, part = step.pull_back(adjoint)
            total = add_adjoints(total, part)
            self.products += step.products
            # Its graph must go before the next one is built.
            del step
        return adjoint, total

    def continuous(self, adjoint: list[Tensor], solver: str) -> tuple[list[Tensor], Gains]:
        """Return the adjoint at the beginning of the flow, and the derivative in λ.

        Args:
            adjoint: Derivative in the parameters at its end. Cost: 9 F for each step with Euler,
                15 F with Heun.
            solver: ``"euler"`` or ``"heun"``.

        Raises:
            StiffnessError: A step is unstable.
        """
        euler = self._inner.with_steps(self._inner.steps, "euler")
        total: Gains = [None] * len(self._meta)
        ahead = self._linearized(self._inner.steps, euler)
        for index in reversed(range(self._inner.steps)):
            change, part = self._slope(ahead, adjoint)
            if solver == "heun":
                ahead = self._linearized(index, euler)
                predicted = _sum(adjoint, change)
                # The next step begins with a product at this state, too.
                other, also = self._slope(ahead, predicted, retain_graph=index > 0)
                change = [tensor / 2 for tensor in _sum(change, other)]
                part = scaled(add_adjoints(part, also), 0.5)
            elif index:
                ahead = self._linearized(index, euler)
            adjoint, total = _sum(adjoint, change), add_adjoints(total, part)
        return adjoint, total

    def integrated(
        self, adjoint: list[Tensor], solver: str, tolerance: float
    ) -> tuple[list[Tensor], Gains]:
        """Return what :meth:`continuous` does, by a solver that chooses its own steps.

        Args:
            adjoint: Derivative in the parameters at the end of the flow.
            solver: Name of an adaptive method of torchdiffeq. Cost: 9 F for each evaluation.
            tolerance: Error of a step, relative to the adjoint and to what it was at the end.

        Raises:
            MissingDependencyError: torchdiffeq is not installed.
            StiffnessError: The solver gives up.
        """
        with optional_import(f"Adjoint(solver={solver!r})"):
            from torchdiffeq import odeint
        euler, steps = self._inner.with_steps(self._inner.steps, "euler"), self._inner.steps
        leaves = list(self._meta.values())
        likes = [*adjoint, *leaves]
        start = as_vector([*adjoint, *(torch.zeros_like(leaf) for leaf in leaves)])

        def apart(vector: Tensor) -> list[Tensor]:
            parts = vector.split([like.numel() for like in likes])
            return [part.view_as(like).to(like) for part, like in zip(parts, likes, strict=True)]

        def slope(time: Tensor, vector: Tensor) -> Tensor:
            present = apart(vector)[: len(adjoint)]
            self.passes += 1
            self.products += 1
            state = self._first.replaced(parameters=self._between(steps - float(time)))
            step = _StepGraph(self._problem, euler, state, self._meta, self._batch, 1)
            moved, part = step.pull_back(present)
            change = [m - p for m, p in zip(moved, present, strict=True)]
            gains = [
                torch.zeros_like(leaf) if gain is None else gain
                for leaf, gain in zip(leaves, part, strict=True)
            ]
            return as_vector([*change, *gains]).to(start)

        times = torch.tensor([0.0, float(steps)], dtype=torch.float64, device=start.device)
        accepted = {
            "rtol": tolerance,
            "atol": tolerance * max(norm(adjoint), torch.finfo(start.dtype).tiny),
            "options": {"max_num_steps": _MOST * steps},
        }
        try:
            end = odeint(slope, start, times, method=solver, **accepted)[-1]
        except AssertionError as error:
            raise _stiff(self._inner, f"{solver} gives up ({error})") from error
        parts = apart(end)
        gained: Gains = list(parts[len(adjoint) :])
        return parts[: len(adjoint)], gained

    def _between(self, position: float) -> Tensors:
        """Return θ between stored states, by a cubic through the four that are nearest."""
        count = min(4, len(self.points))
        first = min(max(math.floor(position) - 1, 0), len(self.points) - count)
        places = range(first, first + count)
        weights = [
            math.prod((position - other) / (place - other) for other in places if other != place)
            for place in places
        ]
        return {
            name: sum(
                (
                    weight * self.points[place][name]
                    for weight, place in zip(weights, places, strict=True)
                ),
                start=torch.zeros_like(tensor),
            )
            for name, tensor in self.points[0].items()
        }

    def _linearized(self, index: int, inner: GradientFlow) -> _StepGraph:
        """Return a step from a stored state with its graph."""
        of_step = 2 if inner.solver == "heun" else 1
        self.passes += of_step
        return _StepGraph(self._problem, inner, self._at(index), self._meta, self._batch, of_step)

    def _slope(
        self, step: _StepGraph, adjoint: list[Tensor], retain_graph: bool = False
    ) -> tuple[list[Tensor], Gains]:
        """Return −h H p, by which the adjoint changes in a step backward, and what λ gains."""
        moved, part = step.pull_back(adjoint, retain_graph)
        self.products += step.products
        change = [m - p for m, p in zip(moved, adjoint, strict=True)]
        size = float(norm(adjoint))
        if size > 0:
            self.stiffness = max(self.stiffness, float(norm(change)) / size)
        if not self.stiffness <= _STABLE:
            raise _stiff(self._inner, f"h ‖H p‖ is {self.stiffness:.3g} ‖p‖")
        return change, part


class _StepGraph:
    """A step of the flow with its graph."""

    def __init__(
        self,
        problem: BilevelProblem,
        inner: GradientFlow,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        products: int,
    ) -> None:
        self.products = products
        self._leaves = list(meta.values())
        points = {n: tensor.detach().requires_grad_() for n, tensor in state.parameters.items()}
        self._points = list(points.values())
        with double_backward_kernels():
            after, self._loss = inner.flow_step(
                problem, state.replaced(parameters=points), meta, batch, True
            )
        self._after = list(after.parameters.values())

    def pull_back(
        self, adjoint: list[Tensor], retain_graph: bool = False
    ) -> tuple[list[Tensor], Gains]:
        """Multiply an adjoint with the Jacobian of the step in θ and in λ."""
        inputs, size = [*self._points, *self._leaves], len(self._points)
        with double_backward_kernels(), within(self._loss):
            found = vector_jacobian_product(self._after, inputs, adjoint, retain_graph)
        # A step is θ and a change of it, so that the adjoint goes on to each parameter.
        return [tensor for tensor in found[:size] if tensor is not None], found[size:]


def _sum(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _stiff(inner: GradientFlow, what: str) -> StiffnessError:
    return StiffnessError(
        f"the gradient flow is too stiff for {inner.steps} steps of {inner.solver}: {what}. Give "
        f"GradientFlow(steps=) more than {inner.steps}, or a shorter time."
    )
