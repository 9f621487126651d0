"""Scores of a model on tasks that it has adapted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient, Traits, check_finite
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.passes import Loss
from metatoolkit.training.across_tasks import AcrossTasks
from metatoolkit.training.checks import check_numbers
from metatoolkit.training.task_batching import Mode, TaskBatching


class TaskScores:
    """Adapts to tasks by inner steps and scores each on its query set.

    Tasks begin at the initial state that the present λ sets, and run as
    :func:`metatoolkit.over_tasks` runs them. Model, buffers and λ stay as they are. Cost for each
    task: an ordinary training step for each inner step, and a forward pass.

    Args:
        problem: The problem of one task.
        inner: Inner learner.
        steps: Number of inner steps.
        score: ``(model, meta, query) -> scalar tensor``, for instance the accuracy; it needs no
            gradient. ``None`` takes the problem's ``valid_loss``.
        batching: How the tasks run.

    Raises:
        ConfigurationError: ``steps`` is below 1, or an argument is another kind of thing.

    Example:
        >>> import torch, metatoolkit as mt
        >>> model = torch.nn.Linear(1, 1)
        >>> meta = mt.metaparameters.Initialization(model)
        >>> def squared_error(model, meta, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> problem = mt.BilevelProblem(
        ...     model, meta, squared_error, squared_error, initial=type(meta).values
        ... )
        >>> tasks = next(mt.tasks.FunctionTasks(shots=5, queries=5, tasks=8))
        >>> TaskScores(problem, mt.inner.SGD(lr=0.01), steps=3)(tasks).shape
        torch.Size([8])
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        steps: int,
        score: Loss | None = None,
        batching: TaskBatching | Mode = "auto",
    ) -> None:
        check_numbers(steps=steps)
        # A score need not be a mean over examples.
        sizes = problem.micro_batched.sizes
        scored = BilevelProblem(
            problem.model,
            problem.meta,
            problem.train_loss,
            problem.valid_loss if score is None else score,
            problem.valid_mode,
            problem.initial,
            {n: size for n, size in sizes.items() if score is None or n == "train_loss"},
        )
        self._begin = lambda: inner.init(scored)
        self._across = AcrossTasks(scored, inner, _Adapted(steps), batching, observes=False)

    def __call__(self, tasks: Any) -> Tensor:
        """Return the scores of a batch of tasks, of shape (tasks,).

        Args:
            tasks: A batch of tasks, as in :func:`metatoolkit.over_tasks`.

        Raises:
            NonFiniteError: A score is NaN or infinite; the task is named.
        """
        scores: Tensor = self._across(tasks, self._begin()).details["task_losses"]
        return scores


class _Adapted(Estimator):
    """Takes inner steps and evaluates the outer loss; λ is not differentiated."""

    traits = Traits(kind="approximate", computes="outer loss after T inner steps")
    separable = True

    def __init__(self, steps: int) -> None:
        self.horizon = steps

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        meta = problem.meta_parameters()
        final = roll_out(problem, inner, state, meta, train_batches)
        score = outer_loss(problem, final, meta, valid_batch)
        check_finite({"the score": score})
        steps = len(train_batches)
        cost = Cost(forward=steps + 1, backward=steps)
        none = {name: torch.zeros_like(tensor) for name, tensor in meta.items()}
        return Hypergradient(gradient=none, valid_loss=score, state=final, cost=cost)

    @override
    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        raise NotImplementedError("it estimates no gradient")
