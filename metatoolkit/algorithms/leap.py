"""Leap: initial values from which the way of the inner steps is short."""

from __future__ import annotations

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.leap import Leap
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def leap(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 100,
    norm: bool = True,
    loss: bool = True,
    stabilizer: bool = True,
) -> Algorithm:
    """Return Leap (Flennerhag et al. 2019, arXiv 1812.01054), for many inner steps.

    It learns from the support alone; the query gives the value that is reported. Cost for a task,
    with F one forward pass: (4 T + 1) F. Memory: that of a training step.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.
        norm: Whether the length or the energy of the way is descended.
        loss: Whether the way is that on the surface of the loss.
        stabilizer: Whether a step at which the loss rises counts as if it fell.

    Example:
        >>> criterion = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> leap(nn.Linear(1, 1), criterion, criterion, lr=0.1).estimator.horizon
        100
    """
    return assemble(model, train_loss, valid_loss, lr, Leap(steps, norm, loss, stabilizer))
