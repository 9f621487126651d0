"""ARUBA: initial values by Reptile, and learning rates by how tasks differ in each coordinate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.reptile import Reptile
from metatoolkit.inner.aruba import ARUBA
from metatoolkit.inner.hyperparameters import Hyperparameter
from metatoolkit.metaparameters import AdaptiveRates
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def aruba(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 5,
    zeta: float = 1.0,
    power: float = 1.0,
    isotropic: bool = False,
    refinement: float = 0.0,
) -> Algorithm:
    """Return ARUBA or ARUBA++ (Khodak et al. 2019, arXiv 1906.02717).

    Initial values move as with Reptile, and the rate of each coordinate as
    :class:`metatoolkit.metaparameters.AdaptiveRates` say, after each meta step and by no
    optimizer. ARUBA++ is for new tasks: ``refined``, an inner learner whose rates sink further
    with the gradients that each step meets. Cost: that of Reptile, (3 T + 1) F for a task. Memory:
    that of a training step, and a tensor per parameter.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: First inner learning rate, ε / ζ.
        steps: Number of inner steps T.
        zeta: ζ; how many squared gradients the first rate outweighs.
        power: p, by which ε² and ζ² of later tasks fall.
        isotropic: Whether all coordinates share one rate.
        refinement: c of ARUBA++; 0 adapts to new tasks as in training.

    Raises:
        ConfigurationError: ``refinement`` is negative or not finite.
        UnsupportedError: An isotropic rate is to be refined.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> algorithm = aruba(nn.Linear(1, 1), loss, loss, lr=0.1, refinement=1.0)
        >>> algorithm.meta["rates"].at(step=0)["bias"]
        tensor([0.1000])
        >>> type(algorithm.refined).__name__
        'ARUBA'
    """
    rates = AdaptiveRates(model, lr, zeta, power, isotropic)
    algorithm = assemble(model, train_loss, valid_loss, rates, Reptile(steps))
    if not 0 <= refinement < math.inf:
        raise ConfigurationError(
            f"refinement is {refinement}; a finite number from 0 on is needed."
        )
    if refinement == 0:
        return algorithm
    rates.refinement(refinement)

    def refined(meta: Any, step: int) -> dict[str, Tensor]:
        del step
        found: dict[str, Tensor] = meta["rates"].refinement(refinement)
        return found

    lr_of: Hyperparameter = algorithm.inner.hyperparameters["lr"]
    return dataclasses.replace(algorithm, refined=ARUBA(lr=lr_of, refinement=refined))
