"""The training losses of all candidates by one pass that is mapped over them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError, brief
from metatoolkit.hypergradients.equal_losses import differing
from metatoolkit.hypergradients.replay_check import is_due
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import SideBySide
from metatoolkit.state import Tensors

if TYPE_CHECKING:
    from metatoolkit.hypergradients.candidates import Candidates


def mapped_losses(
    candidates: Candidates,
    problem: BilevelProblem,
    meta: Tensors,
    batch: Any,
    given: BilevelProblem,
) -> list[Tensor]:
    """Return the training losses of all candidates, with their graph, by one ``torch.vmap``.

    The first time that a loss is mapped, each candidate takes a pass of its own, too, and the
    losses are compared. Memory is that of K graphs and K copies of what is perturbed.

    Args:
        candidates: The candidates.
        problem: The bilevel problem, as candidates take it.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.
        given: The problem as the estimator was given it, which knows what was compared.

    Returns:
        A scalar for each candidate. Cost: 1 F for each, and as much once for each loss.

    Raises:
        UnsupportedError: The loss cannot be mapped, or has other values where it is.
    """
    if "train_loss" in problem.micro_batched.sizes:
        raise _refusal("train_loss is taken in micro-batches, whose memory it would multiply")
    alone: list[Tensor] = []
    if is_due(given, "train_loss"):
        for candidate in range(candidates.number):
            with torch.enable_grad():
                loss = candidates.train_loss(problem, candidate, meta, batch)
            alone.append(loss.detach())
            del loss
    if (why := problem.needs_own_pass(["train_loss"])) is not None:
        raise _refusal(why)
    each = [candidates.point(k) for k in range(candidates.number)]
    own = set(candidates.names)
    # One parameter after the other, whose copies go.
    points = {
        name: torch.stack([point.pop(name) for point in each]) if name in own else parameter
        for name, parameter in candidates.state.parameters.items()
    }
    # Each has buffers of its own, which its pass may move.
    buffers = {
        name: buffer.expand(candidates.number, *buffer.shape)
        for name, buffer in candidates.state.buffers.items()
    }
    keys = [candidates.loss_key(k) for k in range(candidates.number)]

    # Keys of candidates that share no masks take the place of the first one below.
    def of_one(parameters: Tensors, buffers: Tensors) -> Tensor:
        return problem.evaluate_train(parameters, meta, buffers, batch, keys[0])[0]

    common = candidates.common_random_numbers
    mapped = torch.vmap(
        of_one,
        in_dims=({name: 0 if name in own else None for name in points}, 0),
        randomness="same" if common else "different",
    )
    try:
        with torch.enable_grad(), contextlib.nullcontext() if common else SideBySide(keys):
            losses = list(mapped(points, buffers).unbind())
    except RuntimeError as error:
        raise _refusal(f"torch.vmap cannot run train_loss: {brief(error)}") from error
    if not alone:
        return losses
    worst = differing(losses, alone, lambda: candidates.train_loss(problem, 0, meta, batch))
    if worst is not None:
        among, itself = float(losses[worst].detach()), float(alone[worst])
        raise _refusal(
            f"train_loss is {among:.6g} for candidate {worst} among the others and {itself:.6g} by "
            "itself"
        )
    return losses


def _refusal(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"streamed is 'vmap', and {why.rstrip('.')}. Use streamed=None, or False to keep the "
        "graphs of passes one by one."
    )
