"""WarpGrad: warp layers are learned that inner steps go through, with or without initial values."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble, trainable
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.warp_grad import Iterates, Start, WarpGrad
from metatoolkit.inner.sgd import SGD
from metatoolkit.metaparameters import Shared, insert_warp_layers
from metatoolkit.metaparameters.warp_layer import warp_layers_of
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def warpgrad(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    start: Start | None = "maml",
    first_order: bool = False,
    iterates: Iterates = "each",
    weight: float = 1.0,
    where: Sequence[str] | None = None,
) -> Algorithm:
    """Return WarpGrad (Flennerhag et al. 2020, arXiv 1909.00025), as algorithm 1 has it.

    The model's warp layers are the part ``"shared"`` of λ: no inner step moves them. Where it has
    none they are put in, at the identity. With ``start`` the initial values of the others are
    learned, too (Warp-MAML, Warp-Leap); without it every task begins at the model's present ones.
    Cost and memory are those of :class:`metatoolkit.hypergradients.WarpGrad`.

    Args:
        model: Network; warp layers are put in where it has none.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.
        start: What the initial values are learned by: ``"maml"``, ``"fomaml"``, ``"leap"``, or
            ``None`` to leave them.
        first_order: Whether the step from each iterate is held.
        iterates: Whether λ descends the mean over each iterate, or the term of the last.
        weight: Factor of the gradient in the initial values.
        where: Name patterns of the layers or blocks that warp layers follow; see
            :func:`metatoolkit.metaparameters.insert_warp_layers`.

    Raises:
        ConfigurationError: ``where`` is given for a model that has warp layers.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> sorted(dict(warpgrad(model, loss, loss, lr=0.1).meta["shared"].named_parameters()))
        ['0.warp_layer.bias', '0.warp_layer.weight']
    """
    estimator = WarpGrad(steps, iterates, first_order, start, weight)
    if where is not None or not warp_layers_of(model):
        insert_warp_layers(model, where)
    layers = warp_layers_of(model)
    warps = [f"{layer}.{name}" for layer, m in layers.items() for name, _ in m.named_parameters()]
    if start is not None:
        adapted = [name for name in trainable(model) if name not in warps]
        return assemble(model, train_loss, valid_loss, lr, estimator, adapted)
    meta = nn.ModuleDict({"shared": Shared(model, [glob.escape(name) for name in warps])})
    problem = BilevelProblem(model, meta, train_loss, valid_loss)
    return Algorithm(problem, SGD(lr=lr), estimator, meta)
