"""The exact hypergradient of T inner steps, as a stepwise adjoint recursion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.arguments import require_choice, require_steps
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    fill_gradients,
)
from metatoolkit.hypergradients.first_order import refuse_inner_meta
from metatoolkit.hypergradients.kept_graphs import MEMORY_BUDGET
from metatoolkit.hypergradients.mixed_mode import MixedStep, step_with_gradients
from metatoolkit.hypergradients.product_choice import ProductOption
from metatoolkit.hypergradients.products import Adjoint, add_adjoints, scaled
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.step_graph import DifferentiatedStep, StepGraph
from metatoolkit.hypergradients.step_plan import StepPlans
from metatoolkit.hypergradients.trajectory import (
    Visit,
    outer_gradient,
    outer_loss,
    roll_out,
    states_backward,
)
from metatoolkit.hypergradients.truncation import require_truncation
from metatoolkit.hypergradients.unrolled_traits import described
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

_CHECKPOINTS = ("every", "sqrt", "tree")


@estimators.register()
class Unrolled(Estimator):
    """Reverse-mode differentiation through ``steps`` inner steps.

    It follows Franceschi et al. 2017, arXiv 1703.01785, algorithm 1. The last steps
    (``keep_graphs``) keep the graph of their evaluation, and are differentiated at once. Those
    before them are run without a graph, and the adjoint runs backward over their states: each step
    is computed again with its graph, differentiated, and its graph freed. The numbers do not depend
    on how many are kept. Buffers, such as BatchNorm's running statistics, are constants of the
    derivative.

    ``checkpoint`` says which states are kept; the result does not depend on it:

    - ``"every"``: all T.
    - ``"sqrt"``: about 2 √T, for at most 3 F more per step.
    - ``"tree"``: at most (k − 1) ⌈log_k T⌉ + 1 with the arity k, for at most 3 F (⌈log_k T⌉ − 1)
      more per step (REPLAY, Engstrom et al. 2025, arXiv 2503.13751).

    ``product`` says how an adjoint is multiplied with the Jacobian of a step:

    - ``"reverse_over_reverse"``: double backward. With F one forward pass: 10 F for one step (λ in
      the loss; 11 F at the input), 9 F for each further one whose graph is kept, and 12 F for each
      other. Memory beyond the states: the graphs that are kept, of one step at least, each about
      three times that of a training step.
    - ``"forward_over_reverse"``: the gradient's derivative along the adjoint, in forward mode
      (MixFlow-MG, Kemaev et al. 2025, arXiv 2505.00793). 12 F for each step (9 F of them for the
      product) and 3 F for the outer loss. Memory beyond the states: once to 2.5 times that of a
      training step for plain layers, 4 to 5 times where PyTorch takes normalization apart for its
      forward mode; and the gradient at each state that is kept on the lowest level, without which
      3 F more are taken. It needs forward-mode rules for the operations of the training loss.
    - ``"auto"``: what takes fewer operations, counted at the first call with new shapes for one
      step with convolutions; elsewhere the double backward, which takes fewer.

    With ``truncation=k`` the adjoint runs over the last k steps only (Shaban et al. 2019, arXiv
    1810.10667): λ counts as constant in the steps before, no state of which is kept. That is
    biased unless the steps forget where they started.

    With ``step_weights`` w it is the derivative of Σ_t w_t L(θ_t), the outer loss after every step
    (multi-step loss of MAML++, Antoniou et al. 2019, arXiv 1810.09502), for 3 F more for each
    weight above 0 but the last. The validation loss that is returned is L(θ_T).

    With ``first_order`` the gradient of the training loss is a constant of each step, which leaves
    the second derivatives out (first-order MAML, Finn et al. 2017, arXiv 1703.03400, and, with
    ``step_weights``, the first phase of MAML++): the adjoint sees the update alone, and in it λ as
    learning rates. λ that acts within the training loss, and nowhere else, is an error. Cost:
    (3 T + 3) F. Memory: T inner states and gradients; ``product`` is not read.

    Args:
        steps: Number of inner steps T.
        truncation: Number of last steps k that are differentiated; ``None`` for all.
        checkpoint: Which states are kept.
        product: How adjoints are multiplied with Jacobians.
        arity: Number of parts k into which each level of the tree cuts a trajectory; read with
            ``checkpoint="tree"`` only.
        keep_graphs: Number of last steps that keep the graph of their first evaluation, at least
            1. Each saves 3 F and holds the memory of one graph. ``"auto"`` for as many as fit
            ``memory_budget``: what the graph of a step holds is measured at the first step of a
            call with new shapes, which is taken once more where not all of them fit. The result
            tells the number as ``details["keep_graphs"]``. It is 1 with another ``checkpoint``
            than ``"every"``, which is there to save memory, and in mixed mode and for
            ``first_order``, which build no graphs of steps.
        memory_budget: Bytes that graphs may take with ``keep_graphs="auto"``.
        step_weights: Weight of the outer loss after each step, at least 0 and not all 0, for which
            the graphs of all steps are kept; ``None`` for that after the last step alone.
        first_order: Whether second derivatives are left out. It may be set between calls.

    Raises:
        ConfigurationError: A number is out of range, or a name is unknown.

    Example:
        >>> Unrolled(10_000, checkpoint="tree", arity=10).horizon
        10000
    """

    complex_meta = True
    separable = True
    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="second derivatives of the training loss",
        passes="10 F for T = 1, 9 F for each further step whose graph is kept, 12 F for others",
        memory="T inner states and the graph of one step, or of those kept",
        paper="Franceschi et al. 2017, arXiv 1703.01785",
    )

    def __init__(
        self,
        steps: int = 1,
        truncation: int | None = None,
        checkpoint: Literal["every", "sqrt", "tree"] = "every",
        product: ProductOption = "auto",
        arity: int = 8,
        keep_graphs: int | Literal["auto"] = "auto",
        step_weights: Sequence[float] | None = None,
        first_order: bool = False,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        require_steps(steps)
        require_truncation(truncation, steps)
        require_choice("checkpoint", checkpoint, _CHECKPOINTS)
        if arity < 2:
            raise ConfigurationError(
                f"arity is {arity}; a tree cuts a trajectory into at least 2 parts."
            )
        self.horizon = steps
        self.truncation = truncation
        self.checkpoint = checkpoint
        self.product = product
        self.arity = arity
        self.keep_graphs = keep_graphs
        self._plans = StepPlans(product, keep_graphs, memory_budget, checkpoint != "every")
        self._first_order = False
        self.step_weights = step_weights
        self.first_order = first_order

    @property
    def first_order(self) -> bool:
        """Whether second derivatives are left out, which may be set between calls."""
        return self._first_order

    @first_order.setter
    def first_order(self, first_order: bool) -> None:
        if not isinstance(first_order, bool):
            raise ConfigurationError(f"first_order is {first_order!r}; accepted: True, False.")
        self._first_order = first_order
        self.traits = self._describe()

    @property
    @override
    def repeats_steps(self) -> bool:  # type: ignore[override]
        """Whether a call takes steps twice: those whose graphs are not kept, as far as is known."""
        # In mixed mode each step has passes of two kinds.
        return not self.first_order and self._plans.repeats(self._window())

    @property
    def step_weights(self) -> Sequence[float] | None:
        """Weight of the outer loss after each step, which may be set between calls."""
        return self._step_weights

    @step_weights.setter
    def step_weights(self, weights: Sequence[float] | None) -> None:
        if weights is not None:
            numbers = len(weights) == self.horizon and all(0 <= w < math.inf for w in weights)
            if not numbers or not any(weights):
                raise ConfigurationError(
                    f"step_weights is {list(weights)} with steps={self.horizon}; give a number of "
                    "at least 0 for each step, not all of them 0."
                )
            if min(self._plans.graphs.most, self._window()) < self.horizon:
                raise ConfigurationError(
                    f"step_weights with keep_graphs={self.keep_graphs} and "
                    f"truncation={self.truncation}: the outer loss is differentiated after each "
                    f"step; give keep_graphs={self.horizon} and no truncation."
                )
        self._step_weights = weights
        self.traits = self._describe()

    def _describe(self) -> Traits:
        return described(
            type(self).traits,
            self.product,
            self.arity if self.checkpoint == "tree" else None,
            (self.truncation, self.horizon),
            checkpoints=self.checkpoint != "every",
            weighted=self.step_weights is not None,
            first_order=self.first_order,
        )

    def _window(self) -> int:
        """Return the number of steps that are differentiated."""
        return self.horizon if self.truncation is None else self.truncation

    def _arity(self, states: int) -> int:
        """Return the number of parts into which the trajectory is cut at each level."""
        if self.checkpoint == "tree":
            return self.arity
        return states if self.checkpoint == "every" else math.isqrt(states - 1) + 1

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the derivative of the outer loss after T steps; see the class."""
        meta = problem.meta_leaves()
        window = self._window()
        skipped = len(train_batches) - window
        batches = train_batches[skipped:]
        state = roll_out(problem, inner, state, meta, train_batches[:skipped])
        arguments = (problem, inner, state, meta, batches)
        plan = self._plans.plan(*arguments, self.step_weights is not None, self.first_order)
        split, first = plan.split, plan.first
        passes = skipped

        def advance(point: InnerState, index: int) -> Visit:
            nonlocal passes
            passes += 1
            if split:
                return step_with_gradients(problem, inner, point, meta, batches[index])
            return inner.step(problem, point, meta, batches[index])[0], None

        def linearize(
            point: InnerState, index: int, gradients: Tensors | None = None
        ) -> DifferentiatedStep:
            nonlocal passes
            passes += gradients is None
            arguments = (problem, inner, point, meta, batches[index])
            if split:
                return MixedStep(*arguments, gradients, index > 0, self.first_order)
            return StepGraph(*arguments, through_state=index > 0)

        visits = states_backward(advance, state, first, self._arity(first + 1))
        state, _ = next(visits)
        kept: list[DifferentiatedStep] = []
        weights = self.step_weights or [0.0] * (window - 1) + [1.0]
        outer: list[Adjoint | None] = []
        total: Adjoint = [None] * len(meta)
        ends = [index for index, weight in enumerate(weights, 1) if weight or index == window]
        index = first
        while True:
            graph = plan.graph or linearize(state, index)
            plan.graph = None
            index += 1
            if isinstance(graph, StepGraph):
                end = next(end for end in ends if end >= index)
                more = graph.extend(batches[index:end])
                index, passes = index + more, passes + more
            state = graph.after.detach()
            if index == window:
                break
            kept.append(graph)
            outer.append(None)
            if index in ends:
                passes += 1
                weight = weights[index - 1]
                _, found, direct = outer_gradient(problem, state, meta, valid_batch)
                outer[-1] = scaled(found, weight)
                total = add_adjoints(total, scaled(direct, weight))
        passes += 1
        valid_loss, adjoint, total = graph.pull_back_outer(valid_batch, weights[-1], total)
        # A graph must go before the next one is built.
        del graph
        for index in reversed(range(first + len(kept))):
            if kept:
                step, earlier = kept.pop(), outer.pop()
                adjoint = adjoint if earlier is None else add_adjoints(adjoint, earlier)
            else:
                point, gradients = next(visits)
                step = linearize(point, index, gradients)
            adjoint, total = step.pull_back(adjoint, total)
            del step
        by_name = dict(zip(meta, total, strict=True))
        if self.first_order:
            who = "Unrolled(first_order=True)"
            refuse_inner_meta(problem, inner, state, meta, batches[-1], by_name, who)
        return Hypergradient(
            gradient=fill_gradients(problem, by_name, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(
                forward=passes + plan.cost.forward,
                backward=passes + plan.cost.backward,
                hvp=plan.cost.hvp + (0 if self.first_order else window),
            ),
            details=self._plans.details(window, plan.first),
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
        """Return the outer loss after T steps from ``state`` under ``meta``.

        With a truncation, the steps before the last ones run under the problem's own λ. With
        ``step_weights`` it is the weighted sum of those after each step. With ``first_order`` the
        steps take the gradients that they have under the problem's own λ.
        """
        fixed = problem.meta_parameters()
        skipped = len(train_batches) - self._window()
        state = held = roll_out(problem, inner, state, fixed, train_batches[:skipped])
        weights = self.step_weights or [0.0] * (self._window() - 1) + [1.0]
        parts: list[Tensor] = []
        for batch, weight in zip(train_batches[skipped:], weights, strict=True):
            if self.first_order:
                held, gradients = step_with_gradients(problem, inner, held, fixed, batch)
                with torch.no_grad():
                    entry = inner.enter(problem, state, meta)
                    state = inner.apply(problem, entry, meta, gradients)
                state = state.replaced(buffers=held.buffers)
            else:
                state, _ = inner.step(problem, state, meta, batch)
            if weight:
                parts.append(weight * outer_loss(problem, state, meta, valid_batch))
        return torch.stack(parts).sum()
