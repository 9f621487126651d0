"""ANIL and BOIL: inner steps move a part of the network, and all of it is learned."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble, head_of, trainable
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def anil(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    head: Sequence[str] | None = None,
) -> Algorithm:
    """Return ANIL (Raghu et al. 2020, arXiv 1909.09157): inner steps move the head alone.

    The body is shared by all tasks, and inner steps take no gradient in it: the derivative through
    them is exact, and cheaper than MAML's. Memory: the graphs of T inner steps.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.
        head: Name patterns of the head's parameters; ``None`` for the layer registered last.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> anil(model, loss, loss, lr=0.1).problem.parameter_names
        ['2.weight', '2.bias']
    """
    estimator = Unrolled(steps, keep_graphs=steps)
    return assemble(model, train_loss, valid_loss, lr, estimator, head_of(model, head))


@algorithms.register()
def boil(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    head: Sequence[str] | None = None,
) -> Algorithm:
    """Return BOIL (Oh et al. 2021, arXiv 2008.08882): inner steps move all but the head.

    Cost and memory are about those of MAML.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.
        head: Name patterns of the head's parameters; ``None`` for the layer registered last.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> boil(model, loss, loss, lr=0.1).problem.parameter_names
        ['0.weight', '0.bias']
    """
    kept = head_of(model, head)
    body = [name for name in trainable(model) if name not in kept]
    return assemble(model, train_loss, valid_loss, lr, Unrolled(steps, keep_graphs=steps), body)
