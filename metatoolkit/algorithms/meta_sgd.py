"""Meta-SGD: initial values and a learning rate for each coordinate are learned."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.metaparameters import LearningRates
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def meta_sgd(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    per: Literal["coordinate", "tensor", "layer"] = "coordinate",
    per_step: bool = False,
) -> Algorithm:
    """Return Meta-SGD (Li et al. 2017, arXiv 1707.09835), which learns the inner rates, too.

    With ``per="layer"`` and ``per_step=True`` the rates are LSLR of MAML++ (Antoniou et al. 2019,
    arXiv 1810.09502). Cost and memory are those of MAML, and twice its λ per coordinate.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: First value of each learning rate.
        steps: Number of inner steps T.
        per: What has a rate of its own; see :class:`metatoolkit.metaparameters.LearningRates`.
        per_step: Whether each inner step has rates of its own.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> meta_sgd(nn.Linear(1, 1), loss, loss, lr=0.1).meta["rates"].at(step=0)["bias"].shape
        torch.Size([1])
    """
    rates = LearningRates(model, lr, per, steps if per_step else None)
    return assemble(model, train_loss, valid_loss, rates, Unrolled(steps, keep_graphs=steps))
