"""The exact hypergradient of T inner steps, as a stepwise adjoint recursion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    double_backward_kernels,
    fill_gradients,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors

_VALID = -1


def valid_key(state: InnerState) -> int:
    """Return the random key of the outer loss at a state, apart from those of inner steps.

    Args:
        state: State at which the outer loss is evaluated.
    """
    return fold_in(state.key, state.step, _VALID)


class Unrolled(Estimator):
    """Reverse-mode differentiation through ``steps`` inner steps.

    It follows Franceschi et al. 2017, arXiv 1703.01785, algorithm 1. The state after each step is
    kept, and the adjoint runs backward over them: each step is computed again with its graph,
    differentiated, and its graph freed, so that never more than one step's graph is alive. The
    last step keeps the graph of its first evaluation.

    Cost with F one forward pass: 10 F for one step (λ in the loss; 11 F at the input), and 12 F
    for each further one, of which 3 F go forward. Memory: one inner state per step and the graph
    of one step, about three times the memory of an ordinary training step. Buffers, such as
    BatchNorm's running statistics, are constants of the derivative.

    Args:
        steps: Number of inner steps T.

    Raises:
        ConfigurationError: ``steps`` is below 1.
    """

    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="second derivatives of the training loss",
        passes="10 F for T = 1, 12 F for each further step",
        memory="T inner states and the graph of one step",
        paper="Franceschi et al. 2017, arXiv 1703.01785",
    )

    def __init__(self, steps: int = 1) -> None:
        if steps < 1:
            raise ConfigurationError(f"steps is {steps}; at least 1 inner step is needed.")
        self.horizon = steps

    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the exact derivative of the outer loss after T steps; see the class.

        Args:
            problem: The bilevel problem.
            inner: Inner learner, differentiated through.
            state: Detached state to start from.
            train_batches: T training batches.
            valid_batch: Batch for the outer loss.
        """
        meta = problem.meta_leaves()
        leaves = list(meta.values())
        trajectory = [state]
        for batch in train_batches[:-1]:
            trajectory.append(inner.step(problem, trajectory[-1], meta, batch)[0])

        entry = trajectory.pop()
        inputs, outputs = self._differentiable_step(
            problem, inner, entry, meta, train_batches[-1], bool(trajectory)
        )
        final = outputs.detach()
        points = [tensor.requires_grad_() for tensor in final.tensors()]
        with torch.enable_grad():
            valid_loss = problem.evaluate_valid(
                final.with_tensors(points).parameters,
                meta,
                final.buffers,
                valid_batch,
                valid_key(final),
            )
        adjoint: list[Tensor | None] = [None] * len(points)
        direct: list[Tensor | None] = [None] * len(leaves)
        if valid_loss.requires_grad:
            gradients = torch.autograd.grad(valid_loss, points + leaves, allow_unused=True)
            adjoint, direct = list(gradients[: len(points)]), list(gradients[len(points) :])
        total = add_gradients(list(meta), direct)

        for index in range(len(train_batches) - 1, -1, -1):
            adjoint, step_gradient = self._pull_back(inputs, outputs, adjoint, leaves)
            total = add_gradients(list(meta), list(total.values()), step_gradient)
            if index > 0:
                inputs, outputs = self._differentiable_step(
                    problem, inner, trajectory.pop(), meta, train_batches[index - 1], index > 1
                )
        steps = len(train_batches)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss.detach(),
            state=final.detach(),
            cost=Cost(forward=2 * steps, backward=2 * steps, hvp=steps),
        )

    @staticmethod
    def _differentiable_step(
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        through_state: bool,
    ) -> tuple[list[Tensor], InnerState]:
        """Take a step with its graph; the inputs are leaves where the adjoint goes on."""
        inputs = [tensor.detach().requires_grad_(through_state) for tensor in state.tensors()]
        with double_backward_kernels():
            after, _ = inner.step(problem, state.with_tensors(inputs), meta, batch, True)
        return (inputs if through_state else []), after

    @staticmethod
    def _pull_back(
        inputs: list[Tensor],
        after: InnerState,
        adjoint: list[Tensor | None],
        leaves: list[Tensor],
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Multiply the adjoint with the Jacobian of one step."""
        pairs = [
            (tensor, cotangent)
            for tensor, cotangent in zip(after.tensors(), adjoint, strict=True)
            if cotangent is not None and tensor.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs), [None] * len(leaves)
        outputs, cotangents = zip(*pairs, strict=True)
        with double_backward_kernels():
            gradients = torch.autograd.grad(outputs, inputs + leaves, cotangents, allow_unused=True)
        return list(gradients[: len(inputs)]), list(gradients[len(inputs) :])

    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the outer loss after T steps from ``state`` under ``meta``.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State to start from.
            train_batches: T training batches.
            valid_batch: Batch for the outer loss.
            meta: Meta-parameters by name.
        """
        for batch in train_batches:
            state, _ = inner.step(problem, state, meta, batch)
        with torch.no_grad():
            return problem.evaluate_valid(
                state.parameters, meta, state.buffers, valid_batch, valid_key(state)
            )
