"""MAML++: MAML with a loss after each inner step and learning rates per layer and step."""

from __future__ import annotations

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.metaparameters import LearningRates
from metatoolkit.stateless.passes import Loss

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
) -> Algorithm:
    """Return MAML++ (Antoniou et al. 2019, arXiv 1810.09502): multi-step loss and LSLR.

    Of the paper's parts it has the outer loss after each inner step and the learned learning rate
    for each layer and step. BatchNorm's statistics are those of each batch (modules in train
    mode), not per step, and derivatives are of second order throughout. The weights of the steps
    move towards the last one by ``estimator.step_weights = multi_step_weights(steps, progress)``
    between calls of ``fit``. Cost: that of MAML and 3 (T − 1) F more for each task.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: First value of each inner learning rate.
        steps: Number of inner steps T.
        progress: How far the weights of the steps are annealed; see :func:`multi_step_weights`.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> algorithm = maml_plus_plus(nn.Linear(1, 1), loss, loss, lr=0.1, steps=4)
        >>> algorithm.estimator.step_weights, algorithm.meta["rates"].steps
        ([0.25, 0.25, 0.25, 0.25], 4)
    """
    weights = multi_step_weights(steps, progress)
    estimator = Unrolled(steps, keep_graphs=steps, step_weights=weights)
    rates = LearningRates(model, lr, "layer", steps)
    return assemble(model, train_loss, valid_loss, rates, estimator)


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
    if not 0 <= progress <= 1:
        raise ConfigurationError(f"progress is {progress}; a number from 0 to 1 is needed.")
    early = max(1 - progress, _LEAST_SHARE) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]
