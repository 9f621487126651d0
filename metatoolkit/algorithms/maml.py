"""MAML and its first-order relatives: the initial values of all parameters are learned."""

from __future__ import annotations

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.first_order import FirstOrder
from metatoolkit.hypergradients.reptile import Reptile
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def maml(
    model: nn.Module, train_loss: Loss, valid_loss: Loss, lr: float, steps: int = 5
) -> Algorithm:
    """Return MAML (Finn et al. 2017, arXiv 1703.03400): the exact derivative in the initial values.

    Cost and memory are those of ``Unrolled(T, keep_graphs=T)``, which holds the graphs of T steps.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> maml(nn.Linear(1, 1), loss, loss, lr=0.1).problem.meta_parameter_names
        ['initialization.weight', 'initialization.bias']
    """
    return assemble(model, train_loss, valid_loss, lr, Unrolled(steps, keep_graphs=steps))


@algorithms.register()
def fomaml(
    model: nn.Module, train_loss: Loss, valid_loss: Loss, lr: float, steps: int = 5
) -> Algorithm:
    """Return first-order MAML (Finn et al. 2017, section 5.2): Jacobians of steps are identities.

    Cost for a task, with F one forward pass: (3 T + 3) F. Memory: that of a training step.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> fomaml(nn.Linear(1, 1), loss, loss, lr=0.1, steps=3).estimator.horizon
        3
    """
    return assemble(model, train_loss, valid_loss, lr, FirstOrder(steps))


@algorithms.register()
def reptile(
    model: nn.Module, train_loss: Loss, valid_loss: Loss, lr: float, steps: int = 5
) -> Algorithm:
    """Return Reptile (Nichol et al. 2018, arXiv 1803.02999): towards where inner steps lead.

    It learns from the support alone; the query gives the value that is reported. Its
    hypergradient is θ_0 − θ_T, so that SGD with the paper's step size as its learning rate is the
    paper's outer step. Cost for a task, with F one forward pass: (3 T + 1) F. Memory: that of a
    training step.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> reptile(nn.Linear(1, 1), loss, loss, lr=0.1).estimator.traits.passes
        '(3 T + 1) F'
    """
    return assemble(model, train_loss, valid_loss, lr, Reptile(steps))
