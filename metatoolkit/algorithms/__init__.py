"""Algorithms of learning across tasks: λ, inner learner and estimator put together by name.

Example:
    >>> import torch, metatoolkit as mt
    >>> def squared_error(model, meta, batch):
    ...     return (model(batch[0]) - batch[1]).square().mean()
    >>> model = mt.networks.MLP(inputs=1, hidden=(40, 40), classes=1)
    >>> maml = mt.algorithms.build("maml", model, squared_error, squared_error, lr=0.02, steps=5)
    >>> support = torch.randn(4, 10, 1), torch.randn(4, 10, 1)
    >>> query = torch.randn(4, 10, 1), torch.randn(4, 10, 1)
    >>> result = mt.over_tasks(maml.problem, maml.inner, maml.estimator, (support, query))
    >>> result.details["task_losses"].shape
    torch.Size([4])
    >>> print(*sorted(mt.algorithms.algorithms))
    a-maml anil aruba boil fomaml imaml leap maml maml++ meta_sgd protonet reptile warpgrad
"""

from __future__ import annotations

from typing import Any

from torch import nn

from metatoolkit.algorithms.assembly import Algorithm as Algorithm
from metatoolkit.algorithms.maml_plus_plus import anneal as anneal
from metatoolkit.algorithms.maml_plus_plus import multi_step_weights as multi_step_weights
from metatoolkit.algorithms.registry import algorithms as algorithms
from metatoolkit.stateless.passes import Loss

register = algorithms.register


def build(
    name: str,
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    *,
    lr: float,
    steps: int,
    **options: Any,
) -> Algorithm:
    """Return an algorithm for a model and two losses.

    Args:
        name: Name of the algorithm, such as ``"maml"``.
        model: Network; its present parameters are the first initial values.
        train_loss: Inner loss ``(model, meta, batch) -> scalar tensor``, on the support.
        valid_loss: Outer loss, with the same signature, on the query.
        lr: Inner learning rate; the first value where rates are learned.
        steps: Number of inner steps.
        **options: Options of the algorithm.

    Raises:
        UnknownNameError: There is no such algorithm, or it has no such option.
        ConfigurationError: An option is out of range.
    """
    given = {"model": model, "train_loss": train_loss, "valid_loss": valid_loss}
    return algorithms.build(name, **given, lr=lr, steps=steps, **options)
