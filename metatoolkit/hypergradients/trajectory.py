"""Trajectories of inner steps: their states, last first, and the adjoint of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.base import check_finite
from metatoolkit.hypergradients.products import (
    Adjoint,
    loss_gradient,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors

Visit = tuple[InnerState, Tensors | None]
"""A state, and the gradient of the training loss there where it is known."""


def valid_key(state: InnerState) -> int:
    """Return the random key of the outer loss at a state, apart from those of inner steps.

    Args:
        state: State at which the outer loss is evaluated.
    """
    return fold_in(state.key, state.step, Stream.VALID_LOSS)


def roll_out(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    meta: Tensors,
    batches: Sequence[Any],
) -> InnerState:
    """Return the state after one inner step per batch; nothing is kept on the way.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: State to start from.
        meta: Meta-parameters by name.
        batches: Training batches. Cost: 3 F each.
    """
    for batch in batches:
        state, _ = inner.step(problem, state, meta, batch)
    return state


def outer_loss(
    problem: BilevelProblem, state: InnerState, meta: Tensors, valid_batch: Any
) -> Tensor:
    """Return the outer loss at a state, a scalar without a graph.

    Args:
        problem: The bilevel problem.
        state: State after the inner steps.
        meta: Meta-parameters by name.
        valid_batch: Batch for the outer loss.
    """
    with torch.no_grad():
        return loss_after(problem, state, meta, valid_batch)


def loss_after(
    problem: BilevelProblem, state: InnerState, meta: Tensors, valid_batch: Any
) -> Tensor:
    """Return the outer loss at a state, a scalar with its graph where gradients are recorded.

    Args:
        problem: The bilevel problem.
        state: State after the inner steps.
        meta: Meta-parameters by name.
        valid_batch: Batch for the outer loss. Cost: 1 F.
    """
    return problem.evaluate_valid(
        state.parameters, meta, state.buffers, valid_batch, valid_key(state)
    )


def outer_gradient(
    problem: BilevelProblem, state: InnerState, meta: Tensors, valid_batch: Any
) -> tuple[Tensor, Adjoint, Adjoint]:
    """Differentiate the outer loss at a state, where the adjoint recursion begins.

    Args:
        problem: The bilevel problem.
        state: Detached state after the inner steps.
        meta: Meta-parameters by name, leaves that require a gradient.
        valid_batch: Batch for the outer loss.

    Returns:
        The outer loss (detached), its gradient in ``state.tensors()``, and its direct gradient in
        λ, in the order of ``meta``. Cost: 3 F.
    """
    points = [tensor.detach().requires_grad_() for tensor in state.tensors()]
    leaves = list(meta.values())
    with torch.enable_grad():
        loss = loss_after(problem, state.with_tensors(points), meta, valid_batch)
    gradients = loss_gradient(loss, points + leaves)
    return loss.detach(), gradients[: len(points)], gradients[len(points) :]


def finite_outer_gradient(
    problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any
) -> tuple[Tensor, Adjoint, Adjoint]:
    """Return what :func:`outer_gradient` does, checked.

    Args:
        problem: The bilevel problem.
        state: Detached state.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Batch for the outer loss.

    Raises:
        NonFiniteError: The loss or its gradient in a parameter is NaN or infinite.
    """
    loss, adjoint, direct = outer_gradient(problem, state, meta, batch)
    named = zip(state.parameters, adjoint, strict=False)
    check_finite(
        {"the validation loss": loss}
        | {
            f"the gradient of the validation loss in {name!r}": gradient
            for name, gradient in named
            if gradient is not None
        }
    )
    return loss, adjoint, direct


def states_backward(
    advance: Callable[[InnerState, int], Visit],
    state: InnerState,
    steps: int,
    arity: int,
    start: int = 0,
) -> Iterator[Visit]:
    """Yield the states 0 to ``steps`` steps after ``state``, last first, by a lazy replay tree.

    REPLAY (Engstrom et al. 2025, arXiv 2503.13751, section 3). The trajectory is cut into
    ``arity`` parts whose first states are kept, the last part is cut in the same way, and so on;
    a part is computed again from its first state when its turn comes. At most
    (k − 1) ⌈log_k(steps + 1)⌉ + 1 states are alive for the arity k. Each level of the tree computes
    a step at most once, so that ⌈log_k(steps + 1)⌉ passes over the trajectory are taken in all.

    Args:
        advance: Takes a state and the index of a step, and returns the state after that step and
            the gradient that it moved by, or ``None`` in its place.
        state: First state.
        steps: Number of steps to the last state, 0 included.
        arity: Number of parts k, at least 2.
        start: Index of the first step.

    Yields:
        A state, and the gradient of the step after it where that was taken from this very object.
    """
    if steps == 0:
        yield state, None
        return
    width = math.ceil((steps + 1) / arity)
    kept: list[tuple[int, InnerState, Tensors | None]] = []
    first = 0
    for index in range(steps // width * width):
        following, gradients = advance(state, start + index)
        if index % width == 0:
            kept.append((index, state, gradients if width == 1 else None))
        state, first = following, index + 1
    del following, gradients
    kept.append((first, state, None))
    last = steps
    while kept:
        first, state, gradients = kept.pop()
        if first == last:
            yield state, gradients
        else:
            yield from states_backward(advance, state, last - first, arity, start + first)
        last = first - 1


def tree_depth(steps: int, arity: int) -> int:
    """Return the number of levels of the replay tree over ``steps`` + 1 states.

    Args:
        steps: Number of steps to the last state.
        arity: Number of parts k at each level.
    """
    depth, count = 0, steps + 1
    while count > 1:
        depth, count = depth + 1, math.ceil(count / arity)
    return depth
