"""What an algorithm consists of, and how its parts are put together."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from metatoolkit.components.patterns import matching
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.inner.aruba import ARUBA
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Hyperparameter
from metatoolkit.inner.sgd import SGD
from metatoolkit.metaparameters import AdaptiveRates, Initialization, LearningRates, Shared
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.passes import Loss


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """An algorithm of learning across tasks, for :class:`metatoolkit.MetaTrainer`.

    Attributes:
        problem: The bilevel problem of one task.
        inner: Inner learner, which adapts to a task.
        estimator: Hypergradient estimator.
        meta: λ, a ``ModuleDict`` of its parts: ``"initialization"``, and, where the algorithm has
            them, ``"shared"``, ``"rates"``, ``"batch_norms"`` and ``"proximal"``. The
            meta-optimizer moves ``meta.parameters()``.
        refined: Inner learner that adapts to new tasks, where it is another than ``inner``.
        anneal: Sets the estimator for a share of the training that is done, where that is a part of
            the algorithm; for ``MetaTrainer.fit(..., anneal=...)``.
    """

    problem: BilevelProblem
    inner: InnerLearner
    estimator: Estimator
    meta: nn.ModuleDict
    refined: InnerLearner | None = None
    anneal: Callable[[float], None] | None = None


def assemble(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float | LearningRates | AdaptiveRates,
    estimator: Estimator,
    adapted: Sequence[str] | None = None,
    also: Mapping[str, nn.Module] | None = None,
) -> Algorithm:
    """Return the algorithm in which gradient descent starts from learned initial values.

    Args:
        model: Network; its present parameters are the first initial values.
        train_loss: Inner loss ``(model, meta, batch) -> scalar tensor``.
        valid_loss: Outer loss, with the same signature.
        lr: Inner learning rate, or those that are a part of λ.
        estimator: Hypergradient estimator.
        adapted: Names of the parameters that inner steps move; the others are shared by all tasks.
            ``None`` for all.
        also: Further parts of λ, which the losses read; parameters of the model that they own
            are not adapted.

    Raises:
        ConfigurationError: No parameter is left to adapt, or none to share.
    """
    parts = dict(also or {})
    if adapted is None:
        own = trainable(model, but=parts.values())
        parts["initialization"] = Initialization(model, [glob.escape(name) for name in own])
    else:
        shared = [name for name in trainable(model) if name not in adapted]
        if not adapted or not shared:
            raise ConfigurationError(
                f"of the model's parameters {len(adapted)} are adapted and {len(shared)} shared "
                "by all tasks; at least one of each is needed. Choose others as head, or 'maml'."
            )
        parts["initialization"] = Initialization(model, [glob.escape(name) for name in adapted])
        parts["shared"] = Shared(model, [glob.escape(name) for name in shared])
    rate: Hyperparameter
    if not isinstance(lr, float | int):
        parts["rates"], rate = lr, _learned_rates
    else:
        rate = lr
    meta = nn.ModuleDict(parts)
    problem = BilevelProblem(model, meta, train_loss, valid_loss, initial=_initial_values)
    inner = ARUBA(lr=rate) if isinstance(lr, AdaptiveRates) else SGD(lr=rate)
    return Algorithm(problem, inner, estimator, meta)


def trainable(model: nn.Module, but: Iterable[nn.Module] = ()) -> list[str]:
    """Return the names of a model's parameters that require a gradient.

    Args:
        model: Any module.
        but: Modules whose parameters are left out.
    """
    others = {id(parameter) for module in but for parameter in module.parameters()}
    return [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in others]


def head_of(model: nn.Module, head: Sequence[str] | None) -> list[str]:
    """Return the names of the parameters of a model's head.

    Args:
        model: Any module.
        head: Their name patterns, as in :mod:`fnmatch`; ``None`` for the layer of the parameter
            that is last.

    Raises:
        ConfigurationError: A pattern matches no parameter, or there is none.
    """
    names = trainable(model)
    if head is not None:
        return matching("head", head, names, "parameter that requires a gradient")
    if not names:
        raise ConfigurationError("model has no parameter that requires a gradient.")
    layer = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == layer]


def _initial_values(meta: Any) -> dict[str, Tensor]:
    values: dict[str, Tensor] = meta["initialization"].values()
    return values


def _learned_rates(meta: Any, step: int) -> dict[str, Tensor]:
    rates: dict[str, Tensor] = meta["rates"].at(step)
    return rates
