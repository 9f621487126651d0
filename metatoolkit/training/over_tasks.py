"""The mean of the hypergradients of a batch of tasks."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.training.across_tasks import AcrossTasks
from metatoolkit.training.task_batching import Mode, TaskBatching
from metatoolkit.training.task_run import Known

_known: weakref.WeakKeyDictionary[BilevelProblem, dict[Any, Known]] = weakref.WeakKeyDictionary()


def over_tasks(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimator: Estimator,
    tasks: Any,
    batching: TaskBatching | Mode = "auto",
    *,
    seed: int = 0,
    keep_states: bool = False,
) -> Hypergradient:
    """Return the mean of the hypergradients of several tasks.

    Each task begins at the same initial state, which λ may set (``initial`` of the problem), with
    a random key and buffers of its own. It takes the estimator's horizon of inner steps on its
    support set; the outer loss is that of its query set. The model, its buffers included, stays
    as it is.

    Args:
        problem: The bilevel problem: ``train_loss`` sees supports, ``valid_loss`` queries.
        inner: Inner learner.
        estimator: Hypergradient estimator.
        tasks: A tuple ``(support, query)`` of any pytrees whose tensors have a leading dimension
            of tasks, or a list of such tuples, one for each task, whose sizes may differ. A
            support that is a list has one batch for each inner step; any other is the batch of
            every step.
        batching: How the tasks run: ``"auto"``, ``"vmap"``, ``"loop"`` or a
            :class:`TaskBatching`.
        seed: Seed of the random keys.
        keep_states: Whether the state that each task reached is returned; the memory of as many
            inner states as there are tasks.

    Returns:
        The mean of gradients and outer losses, the initial state, and the cost of all calls (of
        residuals, the largest). Its details are ``"task_losses"``, the outer losses of shape
        (tasks,), ``"batching"``, how the tasks ran, ``"reason"``, why so where that was not asked
        for, ``"chunk"``, how many at a time where memory limits it, and with ``keep_states``
        ``"states"``, a list. Cost: that of the estimator for each
        task; the first call on tasks of a kind takes more, see :class:`TaskBatching`.

    Raises:
        ConfigurationError: The batching is unknown, or an argument is another kind of thing.
        DataError: The batch has another form, or holds no task.
        ShapeError: Leading dimensions differ.
        UnsupportedError: The estimator carries something from call to call, which belongs to one
            inner problem, or ``"vmap"`` cannot do it; the message says why.
        NonFiniteError: A loss or a hypergradient is NaN or infinite; the task is named.

    Example:
        >>> import torch, metatoolkit as mt
        >>> def squared_error(model, meta, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> model = torch.nn.Linear(1, 1)
        >>> meta = mt.metaparameters.Initialization(model)
        >>> problem = mt.BilevelProblem(
        ...     model, meta, squared_error, squared_error, initial=type(meta).values
        ... )
        >>> slopes, inputs = torch.randn(4, 1, 1), torch.randn(4, 10, 1)
        >>> support = inputs[:, :5], slopes * inputs[:, :5]
        >>> query = inputs[:, 5:], slopes * inputs[:, 5:]
        >>> result = over_tasks(
        ...     problem, mt.inner.SGD(lr=0.1), mt.hypergradients.Unrolled(3), (support, query)
        ... )
        >>> result.gradient["weight"].shape, result.details["task_losses"].shape
        (torch.Size([1, 1]), torch.Size([4]))
    """
    across = AcrossTasks(problem, inner, estimator, batching)
    kinds = type(inner), _settings(inner), type(estimator), _options(estimator)
    across.known = _known.setdefault(problem, {}).setdefault(kinds, across.known)
    return across(tasks, inner.init(problem, seed), keep_states=keep_states)


def _options(estimator: Estimator) -> tuple[Any, ...]:
    """Return the plain options of an estimator, which tell it from others of its class."""
    plain = int | float | str | None
    return tuple((name, v) for name, v in vars(estimator).items() if isinstance(v, plain))


def _settings(inner: InnerLearner) -> tuple[Any, ...]:
    """Return what tells the hyper-parameters of a learner from others that act on other shapes."""

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape)
        return id(value) if callable(value) else type(value)

    return tuple((name, tuple(map(told, inner.settings(name)))) for name in inner.hyperparameters)
