"""Prototypical networks: the step to the class means is the whole of the inner problem."""

from __future__ import annotations

import glob
from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.algorithms.assembly import Algorithm, head_of, trainable
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.inner.sgd import SGD
from metatoolkit.losses import checked_logits, split_mask
from metatoolkit.metaparameters import Shared
from metatoolkit.networks.metric_heads import Prototypes
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def protonet(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 1,
) -> Algorithm:
    """Return prototypical networks (Snell et al. 2017, arXiv 1703.05175), the metric control.

    The model's last layer, a linear one, gives way to
    :class:`metatoolkit.networks.metric_heads.Prototypes`: logits −‖f(x) − p_c‖² with p_c the mean
    of the support features of class c (equations 1 and 2). The means minimize
    Σ_i ‖f(x_i) − p_{y_i}‖² / 2 n_{y_i} with n_c the shots of class c, and one step of rate 1 from
    any p leads there exactly: nothing else is learned within a task, so that neither ``train_loss``
    nor ``lr`` and ``steps`` have a part in it. λ is the embedding f. Support and query are embedded
    apart, each with the statistics of its own batch where layers use them; the paper's code has
    them in one batch.

    Tasks may differ in shots and classes, up to those of the last layer. A class without support
    has no mean, and the logit −∞. Batches may have a mask, as
    :func:`metatoolkit.losses.masked_cross_entropy` takes them. Cost for a task, with F one forward
    pass: 6 F. Memory: the graphs of a pass over the support and one over the query.

    Args:
        model: Network; its last layer is exchanged in place.
        train_loss: Not used.
        valid_loss: Outer loss, of logits and labels.
        lr: Not used.
        steps: Not used.

    Raises:
        ConfigurationError: The last layer is not linear, or there is none before it.

    Example:
        >>> from metatoolkit.losses import cross_entropy
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
        >>> algorithm = protonet(model, cross_entropy, cross_entropy, lr=0.1)
        >>> algorithm.problem.parameter_names, algorithm.estimator.horizon
        (['2.means'], 1)
    """
    del train_loss, lr, steps
    head = head_of(model, None)
    path = head[0].rpartition(".")[0]
    last = model.get_submodule(path)
    body = [name for name in trainable(model) if name not in head]
    if not isinstance(last, nn.Linear) or not body:
        raise ConfigurationError(
            f"the last layer of the model, {path!r}, is a {type(last).__name__} after {len(body)} "
            "parameters; 'protonet' puts class means in the place of a Linear(features, classes), "
            "after an embedding that learns."
        )
    like = last.weight
    model.set_submodule(
        path, Prototypes(last.in_features, last.out_features, like.dtype, like.device)
    )
    meta = nn.ModuleDict({"shared": Shared(model, [glob.escape(name) for name in body])})
    problem = BilevelProblem(model, meta, _distance_to_means, valid_loss)
    return Algorithm(problem, SGD(lr=1.0), Unrolled(1, keep_graphs=1), meta)


def _distance_to_means(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return Σ_i ‖f(x_i) − p_{y_i}‖² / 2 n_{y_i}, from logits that are −‖f(x_i) − p_c‖²."""
    real = None
    if isinstance(batch, tuple | list) and len(batch) == 3:
        batch, real = split_mask(model, batch)
    logits, labels = checked_logits(model, batch)
    real = torch.ones_like(labels, dtype=torch.bool) if real is None else real
    shots = ((labels[:, None] == labels) & real).sum(dim=1)
    distances = -logits.gather(1, labels[:, None])[:, 0]
    # Padding may have a label that no real example has.
    return torch.where(real, distances, 0.0).div(2 * shots.clamp(min=1)).sum()
