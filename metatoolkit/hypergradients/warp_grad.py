"""WarpGrad: the trajectory-agnostic meta-objective, one step from each iterate of adaptation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    fill_gradients,
)
from metatoolkit.hypergradients.first_order import (
    FirstOrder,
    initial_product,
    refuse_inner_meta,
    require_initial_meta,
)
from metatoolkit.hypergradients.leap import Leap
from metatoolkit.hypergradients.products import scaled
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.hypergradients.trajectory import finite_outer_gradient, outer_loss
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

Iterates = Literal["each", "last"]
Start = Literal["maml", "fomaml", "leap"]


@estimators.register()
class WarpGrad(Estimator):
    """The derivative through one inner step from each iterate of adaptation, the iterate held.

    Warped gradient descent (Flennerhag et al. 2020, arXiv 1909.00025, equation 11): λ descends
    the mean over k of L(Φ(θ_k, λ), λ), with L the outer loss, Φ the inner step on training batch
    k, and θ_0, ..., θ_{T−1} the states that T inner steps go through, for constants. No
    derivative goes through more than one step, whatever T. It is meant for λ within the model that
    inner steps leave alone (:class:`metatoolkit.metaparameters.WarpLayer`), over tasks, and takes
    any λ that acts within a step or in the outer loss.

    It is algorithm 1 of the paper, which adds up while it adapts, in constant memory; for
    algorithm 2 see :class:`metatoolkit.training.ReplayBuffer`. With ``first_order`` the step is
    held, too (equation 12): the mean of ∂L/∂λ at θ_1, ..., θ_T.

    With ``start`` other parts of λ, which set the initial state θ_0 (``initial`` of the problem),
    are learned at the same time (equation 13). They must not act elsewhere. Their gradient is
    ``weight`` times that of MAML, of first-order MAML or of Leap, with all else in λ held.

    Cost with F one forward pass: 10 T F, and with ``first_order`` 6 T F; with
    ``iterates="last"`` (3 T + 7) F, and (3 T + 3) F. ``"maml"`` adds (9 T + 3) F, ``"leap"``
    4 T F, ``"fomaml"`` nothing; each of them up to 3 F for a check. Memory: the graph of one
    step, about three times that of an ordinary training step; with ``"maml"`` those of T.

    Args:
        steps: Number of inner steps T.
        iterates: Whether λ descends the mean over all iterates or the term of the last one,
            θ_{T−1}, alone.
        first_order: Whether the inner step is held.
        start: What the initial state is learned by, if it is: ``"maml"`` (Warp-MAML),
            ``"fomaml"`` or ``"leap"`` (Warp-Leap).
        weight: Factor of the gradient in the initial state.

    Raises:
        ConfigurationError: A number is out of range, or a name is unknown.

    Example:
        >>> WarpGrad(steps=20, start="leap").horizon
        20
    """

    traits = Traits(
        kind="approximate",
        computes="derivative through one step from each of T iterates, these held",
        assumes="λ that serves every step alike; second derivatives",
        passes="10 T F",
        memory="graph of one step",
        paper="Flennerhag et al. 2020, arXiv 1909.00025",
    )

    def __init__(
        self,
        steps: int = 1,
        iterates: Iterates = "each",
        first_order: bool = False,
        start: Start | None = None,
        weight: float = 1.0,
    ) -> None:
        require_steps(steps)
        if iterates not in get_args(Iterates):
            raise ConfigurationError(f"iterates is {iterates!r}; accepted: 'each', 'last'.")
        if start is not None and start not in get_args(Start):
            accepted = ", ".join(map(repr, get_args(Start)))
            raise ConfigurationError(f"start is {start!r}; accepted: None, {accepted}.")
        if not 0 < weight < math.inf:
            raise ConfigurationError(f"weight is {weight}; a finite number above 0 is needed.")
        self.horizon = steps
        self.iterates = iterates
        self.first_order = first_order
        self.start = start
        self.weight = weight
        # The way of Leap has a length for each task.
        self.separable = start != "leap"
        self.repeats_steps = start == "maml"
        if first_order:
            self.traits = dataclasses.replace(
                type(self).traits,
                computes="direct derivative at each of T iterates",
                assumes="λ in the outer loss, as in the training loss",
                passes="6 T F",
                memory="graph of one pass",
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
        """Return the mean over iterates; see the class.

        Raises:
            UnsupportedError: λ sets the initial state and ``start`` is not given, or the other
                way around; or a part of λ that does acts elsewhere, too, or one acts where
                ``first_order`` does not look.
        """
        meta = problem.meta_leaves()
        initial, first = self._initial_names(problem, state, meta), state
        begun, cost = self._begin(problem, inner, state, meta, train_batches, valid_batch)
        total: dict[str, Tensor | None] = dict.fromkeys(meta)
        outer: dict[str, Tensor | None] = dict.fromkeys(initial)
        count = self._count()
        for index, batch in enumerate(train_batches):
            if index < self.horizon - count:
                state, _ = inner.step(problem, state, meta, batch)
                continue
            step = None
            if self.first_order:
                state, _ = inner.step(problem, state, meta, batch)
            else:
                step = StepGraph(problem, inner, state, meta, batch, through_state=False)
                state = step.after.detach()
            valid_loss, adjoint, direct = finite_outer_gradient(problem, state, meta, valid_batch)
            parts = [direct] if step is None else [direct, step.pull_back(adjoint)[1]]
            # Its graph must go before the next one is built.
            del step
            parts = [scaled(part, 1 / count) for part in parts]
            total = add_gradients(list(meta), list(total.values()), *parts)
            outer = {n: g for n, g in zip(meta, direct, strict=True) if n in outer}
        if self.start == "fomaml":
            ends = {n: v for n, v in zip(state.parameters, adjoint, strict=False) if v is not None}
            begun = dict(zip(meta, initial_product(problem, first, meta, ends), strict=True))
        self._refuse_elsewhere(outer)
        total |= dict.fromkeys(initial)
        refuse_inner_meta(problem, inner, state, meta, train_batches[-1], total, "WarpGrad")
        for name in initial:
            gradient = begun[name]
            total[name] = None if gradient is None else self.weight * gradient
        passes = self.horizon + count
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=state,
            cost=Cost(
                forward=cost.forward + passes,
                backward=cost.backward + passes,
                hvp=cost.hvp + (0 if self.first_order else count),
            ),
        )

    def _count(self) -> int:
        """Return the number of iterates that λ descends the mean over."""
        return self.horizon if self.iterates == "each" else 1

    def _initial_names(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors
    ) -> list[str]:
        """Return the names of the meta-parameters that set the initial state."""
        if self.start is None:
            if problem.begins_with_meta(state):
                raise UnsupportedError(
                    "λ sets the initial state of this problem, and WarpGrad holds the states that "
                    "it steps from. To learn both give start='leap', 'maml' or 'fomaml'; to learn "
                    "the initial state alone use Unrolled, FirstOrder, Leap or Reptile."
                )
            return []
        require_initial_meta(problem, state, f"WarpGrad(start={self.start!r})")
        zeros = {name: torch.zeros_like(tensor) for name, tensor in state.parameters.items()}
        found = zip(meta, initial_product(problem, state, meta, zeros), strict=True)
        return [name for name, part in found if part is not None]

    def _begin(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batches: Sequence[Any],
        valid_batch: Any,
    ) -> tuple[dict[str, Tensor | None], Cost]:
        """Return the gradient in what sets the initial state, where passes are taken for it."""
        if self.start == "maml":
            exact = Unrolled(self.horizon, keep_graphs=self.horizon)
            found = exact.estimate(problem, inner, state, batches, valid_batch)
            return dict(found.gradient), found.cost
        if self.start == "leap":
            way = Leap(self.horizon).follow(problem, inner, state, meta, batches)
            parts = initial_product(problem, state, meta, way.gradient)
            return dict(zip(meta, parts, strict=True)), way.cost
        return {}, Cost()

    @staticmethod
    def _refuse_elsewhere(outer: dict[str, Tensor | None]) -> None:
        acting = [name for name, gradient in outer.items() if gradient is not None]
        if acting:
            raise UnsupportedError(
                f"meta-parameters ({', '.join(acting[:5])}) set the initial state and act on the "
                "outer loss, too; WarpGrad learns them as one of both. Use Unrolled."
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
        """Return the mean outer loss one step from each iterate, which the present λ leads to.

        With ``start`` that of the initial state is added, with the rest of λ held.
        """
        present = problem.meta_parameters()
        initial = self._initial_names(problem, state, problem.meta_leaves())
        own = meta | {name: present[name] for name in initial}
        point, total = state, torch.zeros(())
        for index, batch in enumerate(train_batches):
            after, _ = inner.step(problem, point, present, batch)
            if index >= self.horizon - self._count():
                moved = after
                if not self.first_order:
                    moved, _ = inner.step(problem, point, own, batch)
                total = total + outer_loss(problem, moved, own, valid_batch) / self._count()
            point = after
        if self.start is not None:
            begins = {"maml": Unrolled, "fomaml": FirstOrder, "leap": Leap}[self.start]
            given = present | {name: meta[name] for name in initial}
            arguments = (problem, inner, state, train_batches, valid_batch, given)
            total = total + self.weight * begins(self.horizon).objective(*arguments)
        return total
