"""What the trainer checks before and while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState
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
    if estimator is not None:
        require_estimator("estimator", estimator)
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
    across_tasks: bool = False,
    redraws: bool = False,
    skip_nonfinite: bool = False,
) -> None:
    """Raise unless the arguments that say when λ and θ move go together.

    Args:
        estimator: Hypergradient estimator, or ``None``.
        meta_every: Outer steps from one move of λ to the next.
        order: What moves first.
        keep_lookahead: Whether the estimator's state is taken over.
        reset_every: Inner steps until θ starts over, or ``None``.
        accumulate: Meta batches for each move of λ.
        across_tasks: Whether the training is one across tasks.
        redraws: Whether θ starts over elsewhere.
        skip_nonfinite: Whether NaN or infinite hypergradients are skipped.

    Raises:
        ConfigurationError: They do not.
    """
    if redraws and reset_every is None:
        raise ConfigurationError(
            "redraw says where θ starts over, which it never does with reset_every=None; give "
            "reset_every, the number of inner steps after which it shall."
        )
    if skip_nonfinite and reset_every is None:
        raise ConfigurationError(
            "skip_nonfinite=True with reset_every=None: θ would stay where it has diverged. Give "
            "reset_every, or lower the learning rate."
        )
    if across_tasks:
        _check_task_rhythm(meta_every, order, keep_lookahead, reset_every)
    check_numbers(meta_every=meta_every, accumulate=accumulate)
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


def _check_task_rhythm(
    meta_every: int, order: str, keep_lookahead: bool, reset_every: int | None
) -> None:
    """Raise where an argument has no meaning for a training across tasks."""
    given = {
        f"meta_every={meta_every}": meta_every != 1,
        f"order={order!r}": order != "meta_first",
        "keep_lookahead=True": keep_lookahead,
        f"reset_every={reset_every}": reset_every is not None,
    }
    wrong = [name for name, present in given.items() if present]
    if wrong:
        raise ConfigurationError(
            f"{wrong[0]} says when a θ that learns on and on moves, but with tasks= every task "
            "begins at the initial state, and every outer step moves λ; leave it out."
        )


def check_lookahead(estimator: Any, before: InnerState, after: InnerState) -> None:
    """Raise where an estimator has no state of its own that a trainer could take over.

    Args:
        estimator: Hypergradient estimator.
        before: State that it was given.
        after: State that it returned.

    Raises:
        ConfigurationError: It took no step.
    """
    if after.step == before.step:
        raise ConfigurationError(
            f"keep_lookahead=True, but {type(estimator).__name__} returns the state that it was "
            "given, so that θ would never move; leave keep_lookahead=False."
        )


def check_nothing_looks(**options: Any) -> None:
    """Raise where an option looks at hypergradients, of a trainer that has none.

    Args:
        options: What was given for each, or ``None``.

    Raises:
        ConfigurationError: One was given.
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{name} needs an estimator, whose hypergradient it looks at.")


def check_numbers(**numbers: int) -> None:
    """Raise unless numbers are at least 1.

    Args:
        numbers: Numbers by the names of their arguments.

    Raises:
        ConfigurationError: One is not.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")


def check_batches(train_batches: Any, valid_batches: Any, estimator: Any, tasks: Any) -> None:
    """Raise where batches for the outer loss are missing or belong to the tasks, or one is given.

    Args:
        train_batches: What was given.
        valid_batches: What was given, or ``None``.
        estimator: The estimator, or ``None``.
        tasks: What calls it on batches of tasks, which bring their own, or ``None``.

    Raises:
        ConfigurationError: It is so.
    """
    if estimator is not None and tasks is None and valid_batches is None:
        raise ConfigurationError(
            "valid_batches is missing; the estimator needs them. Where train_batches are batches "
            "of tasks, which bring their queries, make the trainer with tasks='auto'."
        )
    if tasks is not None and valid_batches is not None:
        raise ConfigurationError(
            "valid_batches is given, but with tasks= each batch of tasks has its query sets: pass "
            "an iterable of batches of tasks (support, query) alone."
        )
    if tasks is not None and isinstance(train_batches, tuple):
        raise ConfigurationError(
            "train_batches is a tuple, as a single batch of tasks (support, query) is; pass a list "
            "of batches, or a source of them, such as mt.tasks.FunctionTasks."
        )


def check_steps_left(steps: int, done: int, resumes: bool) -> None:
    """Raise where a training has nothing left to do.

    Args:
        steps: Total number of outer steps that is asked for.
        done: Number of those that are done.
        resumes: Whether they were done before a resume.

    Raises:
        ConfigurationError: It has not.
    """
    if done > steps or (done == steps and not resumes):
        raise ConfigurationError(
            f"steps is {steps}, but {done} outer steps are done already, and steps counts these, "
            f"too; to go on, give a larger number, for instance steps={done + steps}."
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
            "there, and afterwards λ gets no derivative through it. For MAML pass tasks='auto', "
            "with batches of tasks, or, for one task after the other, the number of inner steps "
            f"after which θ starts over: MetaTrainer(..., reset_every={estimator.horizon}).",
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
