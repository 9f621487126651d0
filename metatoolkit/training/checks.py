"""What the trainer checks before and while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.training.early_stopping import EarlyStopping

_LOSSES = ("train_loss", "valid_loss", "hypergradient_norm")


def described(value: object) -> str:
    """Return what was given in place of something else, in a few words.

    Args:
        value: Any value, or a class in place of an instance.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"


def check_components(inner: Any, estimator: Any, meta_optimizer: Any, scheduler: Any) -> None:
    """Raise unless a trainer's components are instances, and those that belong together are there.

    Args:
        inner: Inner learner.
        estimator: Hypergradient estimator, or ``None``.
        meta_optimizer: Optimizer of λ, or ``None``.
        scheduler: Scheduler of that optimizer, or ``None``.

    Raises:
        ConfigurationError: One is missing or something else.
    """
    require_learner(inner)
    if estimator is not None and not isinstance(estimator, Estimator):
        if isinstance(estimator, type) and issubclass(estimator, Estimator):
            remedy = f"give an instance: {estimator.__name__}(...)"
        else:
            remedy = "an estimator is needed, for instance mt.hypergradients.Unrolled(1), or None"
        raise ConfigurationError(f"estimator is {described(estimator)}; {remedy}.")
    if (estimator is None) != (meta_optimizer is None):
        raise ConfigurationError(
            "estimator and meta_optimizer belong together: give both to learn λ, or neither "
            "to train θ alone."
        )
    if scheduler is not None and meta_optimizer is None:
        raise ConfigurationError("meta_scheduler needs a meta_optimizer, whose rate it sets.")


def check_rhythm(
    estimator: Estimator | None,
    meta_every: int,
    order: str,
    keep_lookahead: bool,
    reset_every: int | None,
    accumulate: int,
) -> None:
    """Raise unless the arguments that say when λ and θ move go together.

    Args:
        estimator: Hypergradient estimator, or ``None``.
        meta_every: Outer steps from one move of λ to the next.
        order: What moves first.
        keep_lookahead: Whether the estimator's state is taken over.
        reset_every: Inner steps until θ starts over, or ``None``.
        accumulate: Meta batches for each move of λ.

    Raises:
        ConfigurationError: They do not.
    """
    for name, number in (("meta_every", meta_every), ("accumulate", accumulate)):
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")
    if reset_every is not None and reset_every < 1:
        raise ConfigurationError(f"reset_every is {reset_every}; at least 1 inner step is needed.")
    if order not in ("meta_first", "inner_first"):
        raise ConfigurationError(f"order is {order!r}; accepted: 'meta_first', 'inner_first'.")
    if keep_lookahead and order == "inner_first":
        raise ConfigurationError(
            "keep_lookahead=True needs order='meta_first': the look-ahead is the base step."
        )
    if keep_lookahead and accumulate > 1:
        raise ConfigurationError(
            f"keep_lookahead=True needs accumulate=1, but accumulate is {accumulate}: each meta "
            "batch has a look-ahead of its own, and θ can take over one alone."
        )
    if estimator is not None and estimator.windows and (meta_every > 1 or accumulate > 1):
        raise ConfigurationError(
            f"{type(estimator).__name__} works off an inner problem in windows that follow each "
            f"other, so that it needs meta_every=1 and accumulate=1; they are {meta_every} and "
            f"{accumulate}. Give it more pairs instead."
        )


def check_stopping(stopping: EarlyStopping | None, evaluates: bool, evaluate_every: int) -> None:
    """Raise unless early stopping can ever see its metric.

    Args:
        stopping: What is watched, or ``None``.
        evaluates: Whether there is an ``evaluate`` function.
        evaluate_every: Steps between evaluations.

    Raises:
        ConfigurationError: It cannot.
    """
    if stopping is None:
        return
    if not isinstance(stopping, EarlyStopping):
        raise ConfigurationError(
            f"early_stopping is {described(stopping)}; give mt.EarlyStopping('metric', "
            "patience=5, mode='min'), or None."
        )
    if stopping.metric not in _LOSSES and not (evaluates and evaluate_every > 0):
        missing = "evaluate_every is 0" if evaluates else "evaluate is missing"
        raise ConfigurationError(
            f"early_stopping watches {stopping.metric!r}, which only evaluate can report, but "
            f"{missing}; without it there are {', '.join(_LOSSES)}."
        )


def warn_of_forgotten_start(
    problem: BilevelProblem, estimator: Any, reset_every: int | None
) -> None:
    """Warn where λ sets an initial state that a training leaves for good with its first step.

    Args:
        problem: The bilevel problem.
        estimator: Hypergradient estimator, or ``None``.
        reset_every: Inner steps until θ starts over, or ``None``.
    """
    if problem.initial is not None and estimator is not None and reset_every is None:
        warnings.warn(
            "λ sets the initial state, but without resets the first outer step alone begins "
            "there, and afterwards λ gets no derivative through it. For MAML pass reset_every=, "
            "the number of inner steps after which θ starts over: "
            f"MetaTrainer(..., reset_every={estimator.horizon}).",
            stacklevel=3,
        )


def check_watched(metric: str, known: Iterable[str]) -> None:
    """Raise unless the metric that early stopping watches is reported.

    Args:
        metric: Its name.
        known: Names of all that were reported.

    Raises:
        ConfigurationError: It is not.
    """
    names = sorted(known)
    if metric not in names:
        raise ConfigurationError(
            f"early_stopping watches {metric!r}, which nothing reports; there are "
            f"{', '.join(names)}."
        )


def check_losses(values: Mapping[str, float], names: Iterable[str], step: int) -> None:
    """Raise unless the values of metrics are finite.

    Args:
        values: Values by name.
        names: The metrics to look at.
        step: Number of outer steps done.

    Raises:
        NonFiniteError: One is not.
    """
    for name in names:
        value = values[name]
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} at outer step {step}. Lower the inner learning rate, or look "
                "for NaN in the data."
            )


def checked_device(device: torch.device | str | None) -> torch.device | None:
    """Return a device, or ``None`` where none is asked for.

    Args:
        device: A device, or its name.

    Raises:
        ConfigurationError: It does not exist here.
    """
    if device is None:
        return None
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device is {device!r}: {error}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device is {device!r}, but no GPU can be used here; pass device='cpu'."
        )
    return resolved
