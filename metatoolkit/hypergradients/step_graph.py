"""Inner steps with their graphs, that adjoints are pulled back through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.products import Adjoint, add_adjoints, scaled, step_product
from metatoolkit.hypergradients.trajectory import loss_after, outer_gradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import is_recorded, within


class DifferentiatedStep(ABC):
    """Inner steps that adjoints are pulled back through.

    Args:
        problem: The bilevel problem.
        meta: Meta-parameters by name, leaves that require a gradient.

    Attributes:
        after: State after the last step.
    """

    after: InnerState

    def __init__(self, problem: BilevelProblem, meta: Tensors) -> None:
        self._problem, self._meta = problem, meta

    @abstractmethod
    def pull_back(
        self, adjoint: Adjoint, direct: Sequence[Tensor | None] = ()
    ) -> tuple[Adjoint, Adjoint]:
        """Multiply an adjoint with the Jacobian of the steps.

        Args:
            adjoint: Derivative in the tensors of the state after the steps.
            direct: Derivative in λ that is known, to which that of the steps is added; none.

        Returns:
            The derivative in the tensors of the state before them, and in λ.
        """

    def pull_back_outer(
        self, valid_batch: Any, weight: float, direct: Sequence[Tensor | None]
    ) -> tuple[Tensor, Adjoint, Adjoint]:
        """Differentiate the outer loss after the steps.

        Args:
            valid_batch: Batch for the outer loss. Cost: 3 F, and what :meth:`pull_back` takes.
            weight: Factor of its derivative.
            direct: Derivative in λ that is known.

        Returns:
            The outer loss, detached, and what :meth:`pull_back` returns.
        """
        state = self.after.detach()
        loss, found, own = outer_gradient(self._problem, state, self._meta, valid_batch)
        total = add_adjoints(direct, scaled(own, weight))
        return loss, *self.pull_back(scaled(found, weight), total)


class StepGraph(DifferentiatedStep):
    """One inner step with its graph, or several in a row, for vector-Jacobian products.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.
        through_state: Whether the product with the derivative in the state is needed, too.

    Attributes:
        after: State after the last step, with its graph.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        through_state: bool = True,
    ) -> None:
        super().__init__(problem, meta)
        count = len(state.parameters)
        # The gradient is taken in the parameters in any case.
        inputs = [
            tensor.detach().requires_grad_(through_state or index < count)
            for index, tensor in enumerate(state.tensors())
        ]
        self._inputs = inputs if through_state else []
        self._inner = inner
        self.after = state.with_tensors(inputs)
        with double_backward_kernels():
            self._step(batch)

    @property
    def is_recorded(self) -> bool:
        """Whether a backward pass needs an exchange, since it may run anything."""
        return is_recorded(self._loss)

    def extend(self, batches: Sequence[Any]) -> int:
        """Take more steps, whose graphs go on from that of the last.

        Args:
            batches: Training batches.

        Returns:
            How many were taken: a backward pass runs under one exchange, so that a step whose loss
            needs one is the last.
        """
        taken = 0
        if not batches:
            return taken
        with double_backward_kernels():
            while taken < len(batches) and not self.is_recorded:
                self._step(batches[taken])
                taken += 1
        return taken

    def _step(self, batch: Any) -> None:
        self.after, self._loss = self._inner.step(
            self._problem, self.after, self._meta, batch, create_graph=True
        )

    @override
    def pull_back(
        self, adjoint: Adjoint, direct: Sequence[Tensor | None] = ()
    ) -> tuple[Adjoint, Adjoint]:
        """Multiply an adjoint with the Jacobian, by reverse over reverse mode.

        Cost: 6 F for each step, after the 3 F of its graph. The derivative in the state is empty
        unless ``through_state``.
        """
        return self._product(self.after.tensors(), adjoint, direct, self._loss)

    @override
    def pull_back_outer(
        self, valid_batch: Any, weight: float, direct: Sequence[Tensor | None]
    ) -> tuple[Tensor, Adjoint, Adjoint]:
        """Differentiate the outer loss by the same backward pass, where it runs no other code."""
        if self.is_recorded:
            return super().pull_back_outer(valid_batch, weight, direct)
        with torch.enable_grad():
            loss = loss_after(self._problem, self.after, self._meta, valid_batch)
        found, total = self._product([loss], [torch.full_like(loss, weight)], direct, loss)
        return loss.detach(), found, total

    def _product(
        self,
        outputs: list[Tensor],
        cotangents: Adjoint,
        direct: Sequence[Tensor | None],
        loss: Tensor,
    ) -> tuple[Adjoint, Adjoint]:
        with double_backward_kernels(), within(loss):
            return step_product(
                outputs, self._inputs, list(self._meta.values()), cotangents, direct
            )
