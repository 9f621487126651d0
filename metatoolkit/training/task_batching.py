"""Hypergradients over a batch of tasks: the mean of one call for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, NonFiniteError, UnsupportedError
from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors
from metatoolkit.training.checks import require_estimator
from metatoolkit.training.task_batches import TaskBatch

Mode = Literal["loop", "auto"]


@dataclasses.dataclass(frozen=True)
class TaskBatching:
    """How the tasks of a batch run.

    Args:
        mode: ``"loop"``: one task after the other, by the estimator as it is; ``"auto"`` takes
            it, too.

    Raises:
        ConfigurationError: The mode is unknown.

    Example:
        >>> TaskBatching("loop")
        TaskBatching(mode='loop')
    """

    mode: Mode = "auto"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(
                f"batching is {self.mode!r}; accepted: {', '.join(map(repr, get_args(Mode)))}."
            )


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
        batching: How the tasks run.
        seed: Seed of the random keys.
        keep_states: Whether the state that each task reached is returned; the memory of as many
            inner states as there are tasks.

    Returns:
        The mean of gradients and outer losses, the initial state, and the cost of all calls (of
        residuals, the largest). Its details are ``"task_losses"``, the outer losses of shape
        (tasks,), ``"batching"``, how the tasks ran, and with ``keep_states`` ``"states"``, a
        list. Cost: that of the estimator for each task.

    Raises:
        ConfigurationError: The batching is unknown, or an argument is another kind of thing.
        DataError: The batch has another form, or holds no task.
        ShapeError: Leading dimensions differ.
        UnsupportedError: The estimator carries something from call to call, which belongs to one
            inner problem.
        NonFiniteError: A loss or a hypergradient is NaN or infinite; the task is named.

    Example:
        >>> import metatoolkit as mt
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
    return across(tasks, inner.init(problem, seed), keep_states=keep_states)


class AcrossTasks:
    """Calls an estimator on batches of tasks.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator.
        batching: How the tasks run.

    Raises:
        ConfigurationError: An argument is another kind of thing.
        UnsupportedError: The estimator carries something from call to call.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        estimator: Any,
        batching: TaskBatching | Mode,
    ) -> None:
        require_learner(inner)
        require_estimator(estimator)
        if estimator.windows or estimator.carries:
            raise UnsupportedError(
                f"{type(estimator).__name__} goes on in each call from what a former one left, "
                "which belongs to one inner problem; tasks are many. Use Unrolled, FirstOrder or "
                "Reptile, or Implicit without warm_start."
            )
        self.batching = batching if isinstance(batching, TaskBatching) else TaskBatching(batching)
        self._components = (problem, inner, estimator)

    def __call__(
        self, tasks: Any, start: InnerState, number: int = 0, keep_states: bool = False
    ) -> Hypergradient:
        """Return the mean hypergradient; see :func:`over_tasks`.

        Args:
            tasks: A batch of tasks.
            start: Initial state, where each task begins.
            number: Number of the batch, which tells its random keys from those of others.
            keep_states: Whether the states that the tasks reached are returned.

        Raises:
            ConfigurationError: Steps were taken from the initial state.
        """
        if start.step != 0:
            raise ConfigurationError(
                f"the state is {start.step} steps from the initial one, where each task begins; "
                "with tasks= take no base steps."
            )
        problem, inner, estimator = self._components
        root = fold_in(start.key, Stream.RESET, number) if number else start.key
        batch = TaskBatch(tasks, estimator.horizon)
        results = _Sum(keep_states)
        for index in range(batch.count):
            state = start.replaced(key=fold_in(root, Stream.TASK, index))
            try:
                results.add(estimator(problem, inner, state, *batch.task(index)))
            except NonFiniteError as error:
                raise NonFiniteError(f"task {index} of the batch: {error}") from error
            except Exception as error:
                error.add_note(f"in task {index} of the batch")
                raise
        return results.mean(start, {"batching": "loop"})

    def begin(self, state: InnerState) -> InnerState:
        """Return an initial state with the parameters that the present λ sets.

        Args:
            state: The initial state under any λ.
        """
        problem = self._components[0]
        with torch.no_grad():
            given = problem.initial_parameters(problem.meta_parameters())
        return state.replaced(
            parameters=state.parameters | {n: t.clone() for n, t in given.items()}
        )


class _Sum:
    """Adds up the results of tasks, of which it keeps no more than it must."""

    def __init__(self, keep_states: bool) -> None:
        self._keep_states = keep_states
        self._gradient: Tensors = {}
        self._losses: list[Tensor] = []
        self._costs: list[Cost] = []
        self._states: list[InnerState] = []

    def add(self, result: Hypergradient) -> None:
        """Take in the result of the next task."""
        if not self._losses:
            self._gradient = dict(result.gradient)
        else:
            self._gradient = {n: g + result.gradient[n] for n, g in self._gradient.items()}
        self._losses.append(result.valid_loss)
        self._costs.append(result.cost)
        if self._keep_states:
            self._states.append(result.state)

    def mean(self, start: InnerState, details: dict[str, Any]) -> Hypergradient:
        """Return the mean of all results.

        Args:
            start: State that the tasks began at.
            details: What else there is to tell.
        """
        losses = torch.stack(self._losses)
        kept = {"states": self._states} if self._keep_states else {}
        return Hypergradient(
            gradient={name: total / len(losses) for name, total in self._gradient.items()},
            valid_loss=losses.mean(),
            state=start,
            cost=total_cost(self._costs),
            details={"task_losses": losses, **details, **kept},
        )


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs, with the largest residual.

    Args:
        costs: Costs of calls, at least one.
    """
    residuals = [cost.residual for cost in costs if cost.residual is not None]
    iterations = [cost.iterations for cost in costs if cost.iterations is not None]
    return Cost(
        forward=sum(cost.forward for cost in costs),
        backward=sum(cost.backward for cost in costs),
        jvp=sum(cost.jvp for cost in costs),
        hvp=sum(cost.hvp for cost in costs),
        residual=max(residuals, default=None),
        iterations=sum(iterations) if iterations else None,
    )
