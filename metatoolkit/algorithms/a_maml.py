"""A-MAML: initial values are learned through a gradient flow, by its adjoint."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.adjoint import Adjoint
from metatoolkit.inner.gradient_flow import GradientFlow
from metatoolkit.stateless.passes import Loss


@algorithms.register("a-maml")
def a_maml(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 200,
    method: Literal["discrete", "continuous"] = "discrete",
    solver: Literal["euler", "heun"] = "euler",
) -> Algorithm:
    """Return A-MAML (Li et al. 2023, arXiv 2110.08432): many inner steps without their graphs.

    A task is adapted to by the gradient flow of ``train_loss`` over the time ``lr`` · ``steps``.
    The discrete adjoint with Euler is the derivative of MAML with as many steps. Cost for a task,
    with F one forward pass: 12 K F for K steps of Euler. Memory: K + 1 times θ and the graph of
    one step.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Size of a step of the flow, the inner learning rate.
        steps: Number of steps K.
        method: Whether the adjoint is that of the steps or of the flow.
        solver: How the flow is solved, and its continuous adjoint.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> a_maml(nn.Linear(1, 1), loss, loss, lr=0.01).inner.hyperparameters["time"]
        2.0
    """
    made = assemble(model, train_loss, valid_loss, lr, Adjoint(method=method, solver=solver))
    return dataclasses.replace(made, inner=GradientFlow(lr * steps, steps, solver))
