"""MAML++: MAML with a loss after each inner step and learning rates per layer and step."""

from __future__ import annotations

import dataclasses
import functools
import glob
from typing import Any, Literal

from torch import Tensor, nn

from metatoolkit.algorithms.assembly import Algorithm, assemble, trainable
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.metaparameters import LearningRates, insert_step_batch_norms
from metatoolkit.stateless.passes import Loss

Norms = Literal["batch", "per_step"]

_LEAST_SHARE = 0.03
"""Of an equal weight, what each step but the last keeps at the end."""


@algorithms.register("maml++")
def maml_plus_plus(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    progress: float = 0.0,
    batch_norm: Norms = "batch",
    first_order: float = 0.0,
) -> Algorithm:
    """Return MAML++ (Antoniou et al. 2019, arXiv 1810.09502): multi-step loss, LSLR, BNRS and BNWB.

    It has the outer loss after each inner step and a learned learning rate for each layer and
    step. With ``batch_norm="per_step"`` the model's BatchNorm layers are replaced by layers with
    scales, shifts and running statistics for each step, the part ``"batch_norms"`` of λ, a
    :class:`metatoolkit.metaparameters.StepBatchNorms`; no inner step moves them. The weights of the
    steps move towards the last one, and derivatives from first to second order, in a training
    ``fit(..., anneal=algorithm.anneal)``. Cost: that of MAML and 3 (T − 1) F more for each task;
    6 T F of first order.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: First value of each inner learning rate.
        steps: Number of inner steps T.
        progress: How far the weights of the steps are annealed; see :func:`multi_step_weights`.
        batch_norm: ``"batch"`` leaves BatchNorm layers as they are, whose scales and shifts inner
            steps move; ``"per_step"`` replaces them.
        first_order: Share of a training that ``anneal`` has take derivatives of first order.

    Raises:
        ConfigurationError: A number is out of range, or there is no BatchNorm layer to replace.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> algorithm = maml_plus_plus(nn.Linear(1, 1), loss, loss, lr=0.1, steps=4)
        >>> algorithm.estimator.step_weights, algorithm.meta["rates"].steps
        ([0.25, 0.25, 0.25, 0.25], 4)
    """
    _require_share("first_order", first_order)
    weights = multi_step_weights(steps, progress)
    estimator = Unrolled(steps, keep_graphs=steps, step_weights=weights)
    annealing = functools.partial(_anneal, estimator, first_order=first_order)
    if batch_norm == "batch":
        rates = LearningRates(model, lr, "layer", steps)
        algorithm = assemble(model, train_loss, valid_loss, rates, estimator)
        return dataclasses.replace(algorithm, anneal=annealing)
    norms = insert_step_batch_norms(model, steps)
    adapted = trainable(model, but=[norms])
    rates = LearningRates(model, lr, "layer", steps, [glob.escape(name) for name in adapted])
    counted = functools.partial(_in_next_step, train_loss)
    also = {"batch_norms": norms}
    algorithm = assemble(model, counted, valid_loss, rates, estimator, also=also)
    return dataclasses.replace(algorithm, anneal=annealing)


def _in_next_step(train_loss: Loss, model: nn.Module, meta: Any, batch: Any) -> Tensor:
    meta["batch_norms"].begin_step()
    return train_loss(model, meta, batch)


def multi_step_weights(steps: int, progress: float) -> list[float]:
    """Return the weights of the outer losses after each inner step (MAML++, section 4).

    They are equal at first; those of all steps but the last fall linearly, to 3 % of that.

    Args:
        steps: Number of inner steps.
        progress: Share of the annealing that is done, from 0 to 1.

    Returns:
        Weights that sum to 1.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> [round(weight, 3) for weight in multi_step_weights(4, progress=1.0)]
        [0.007, 0.007, 0.007, 0.978]
    """
    require_steps(steps)
    _require_share("progress", progress)
    early = max(1 - progress, _LEAST_SHARE) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]


def anneal(algorithm: Algorithm, progress: float, first_order: float = 0.0) -> None:
    """Set what MAML++ anneals, at a point of the training (Antoniou et al. 2019, section 4).

    Derivatives are of first order in the first part of the training, and of second order from
    then on. Where there are outer losses after each inner step, their weights are
    ``multi_step_weights(steps, progress)``. It is for every algorithm whose estimator is an
    :class:`metatoolkit.hypergradients.Unrolled`; MAML++ has it as ``algorithm.anneal``, and others
    as ``fit(..., anneal=functools.partial(mt.algorithms.anneal, algorithm, first_order=0.5))``.

    Args:
        algorithm: The algorithm; its estimator is changed.
        progress: Share of the training that is done, from 0 to 1.
        first_order: Share of the training whose derivatives are of first order, from 0 to 1. The
            paper has its first 50 epochs.

    Raises:
        ConfigurationError: A share is out of range.
        UnsupportedError: The estimator has no derivatives of second order.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> algorithm = maml_plus_plus(nn.Linear(1, 1), loss, loss, lr=0.1, steps=2)
        >>> for epoch in range(4):
        ...     anneal(algorithm, epoch / 4, first_order=0.5)
        ...     print(algorithm.estimator.first_order, algorithm.estimator.step_weights)
        True [0.5, 0.5]
        True [0.375, 0.625]
        False [0.25, 0.75]
        False [0.125, 0.875]
    """
    estimator = algorithm.estimator
    if not isinstance(estimator, Unrolled):
        raise UnsupportedError(
            f"{type(estimator).__name__} has one order of derivatives, so that there is nothing to "
            "anneal; use 'maml++', or 'maml', 'anil', 'boil' or 'meta_sgd', whose estimator is "
            "Unrolled."
        )
    _anneal(estimator, progress, first_order)


def _anneal(estimator: Unrolled, progress: float, first_order: float) -> None:
    _require_share("progress", progress)
    _require_share("first_order", first_order)
    estimator.first_order = progress < first_order
    if estimator.step_weights is not None:
        estimator.step_weights = multi_step_weights(estimator.horizon, progress)


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name} is {value}; a number from 0 to 1 is needed.")
