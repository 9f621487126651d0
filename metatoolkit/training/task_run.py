"""A batch of tasks that runs: one task after the other, or side by side where that is right."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import NonFiniteError, brief
from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.hypergradients.compilation import uncompiled
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_coordinatewise
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState
from metatoolkit.stateless.micro_batched import UnseenTasksError
from metatoolkit.training.stacked_tasks import StackedTasks
from metatoolkit.training.task_batches import TaskBatch, tensors_of
from metatoolkit.training.task_memory import TaskMemory
from metatoolkit.training.task_rules import Observed, TaskRules
from metatoolkit.training.task_sum import TaskSum, total_cost

_COMPARED = 2
"""Tasks that run both ways when tasks of a kind are seen for the first time."""


@dataclasses.dataclass
class Known:
    """What is known of the tasks of a problem, learner and estimator.

    Attributes:
        draws: Whether each loss draws random numbers, by kind of tasks and name of the loss.
        obstacles: What stands against running tasks side by side, or ``None``, by their kind.
        choices: The faster way, once it was measured, and why, by the scale of a batch.
        fitting: How many tasks fit in memory side by side, once it was measured, and why, by kind.
    """

    draws: dict[Any, dict[str, bool]] = dataclasses.field(default_factory=dict)
    obstacles: dict[Any, str | None] = dataclasses.field(default_factory=dict)
    choices: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    fitting: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


class TaskRun:
    """A batch of tasks, and the two ways in which it can run.

    Args:
        components: Problem, inner learner and estimator.
        batch: The tasks.
        start: Initial state, where each task begins.
        root: Random key that those of the tasks are derived from.
        known: What is known of tasks before, to which this one adds.
        chunk: Number of tasks that run side by side at a time, or ``None`` for all.
        share: Numbers of the tasks that run here, at least one; ``None`` for all.
        rules: Parts of λ with rules of their own, which the tasks are observed for; ``None`` for
            none.
        chooses: Whether the way is to be chosen: no more tasks run side by side than fit in
            memory, and what fails side by side runs one by one.
    """

    def __init__(
        self,
        components: tuple[BilevelProblem, InnerLearner, Estimator],
        batch: TaskBatch,
        start: InnerState,
        root: int,
        known: Known,
        chunk: int | None,
        share: range | None = None,
        rules: TaskRules | None = None,
        chooses: bool = False,
    ) -> None:
        self._problem, self._inner, self._estimator = components
        self._batch, self._start, self._known = batch, start, known
        self._share = range(batch.count) if share is None else share
        self._keys = [fold_in(root, Stream.TASK, task) for task in range(batch.count)]
        self._chunk = len(self._share) if chunk is None else chunk
        self._rules = rules
        self._chooses = chooses
        self._memory = TaskMemory(known.fitting, self._problem.devices())
        self._at_once: dict[str, int] = {}

    def one_by_one(
        self, keep_states: bool, details: dict[str, Any], first: int | None = None
    ) -> Hypergradient:
        """Return the mean over tasks, by a call of the estimator for each.

        Args:
            keep_states: Whether the states that the tasks reached are returned.
            details: What else there is to tell.
            first: Number of tasks, the first ones; ``None`` for all.

        Raises:
            NonFiniteError: A loss or a hypergradient is not finite; the task is named.
        """
        results = TaskSum()
        for task in self._share[:first]:
            self._add_alone(results, task, keep_states)
        return results.mean(self._start, {"batching": "loop", **details})

    def _add_alone(self, results: TaskSum, task: int, keep_states: bool) -> None:
        result = self._alone(task)
        states = [result.state] if keep_states else []
        losses = result.valid_loss.reshape(1)
        results.add([task], result, losses, states, self._observed([result.state]))

    def _observed(self, states: Sequence[InnerState]) -> list[Observed]:
        return [self._rules.observe(self._start, s) for s in states] if self._rules else []

    def _alone(self, task: int) -> Hypergradient:
        state = self._start.replaced(key=self._keys[task])
        try:
            return self._estimator(self._problem, self._inner, state, *self._batch.task(task))
        except NonFiniteError as error:
            raise NonFiniteError(f"task {task} of the batch: {error}") from error
        except Exception as error:
            error.add_note(f"in task {task} of the batch")
            raise

    def side_by_side(self, keep_states: bool, details: dict[str, Any]) -> Hypergradient:
        """Return the mean over all tasks, some that are alike at a time.

        Args:
            keep_states: Whether the states that the tasks reached are returned.
            details: What else there is to tell.
        """
        try:
            found = self._stacked(self._kinds, keep_states)
        except Exception as error:
            # One by one the task is named that is to blame.
            reason = f"it failed side by side: {brief(error)}"
            result = self.one_by_one(keep_states, {"reason": reason})
            if self._chooses or isinstance(error, UnseenTasksError):
                return result
            raise
        told = {**found.details, "batching": "vmap", **details}
        if self._at_once:
            told["chunk"] = min(self._at_once.values())
        return dataclasses.replace(found, details=told)

    def _stacked(self, kinds: Mapping[str, Sequence[int]], keep_states: bool) -> Hypergradient:
        results = TaskSum()
        for layout, tasks in kinds.items():
            if self._is_single(tasks):
                self._add_alone(results, tasks[0], keep_states)
                continue
            draws = self._known.draws.setdefault(self._kind(layout), {})
            size = self._at_once.get(layout, self._chunk)
            for first in range(0, len(tasks), size):
                chunk = tasks[first : first + size]
                self._add_stacked(results, chunk, draws, keep_states)
        return results.mean(self._start, {})

    def _is_single(self, tasks: Sequence[int]) -> bool:
        """Return whether there is a task that no other is like, and that was never compared."""
        return len(tasks) == 1 < len(self._share)

    @functools.cached_property
    def _kinds(self) -> dict[str, Sequence[int]]:
        """The numbers of tasks of the share that are alike, by what they are made of."""
        if not self._batch.listed:
            return dict.fromkeys(self._batch.kinds, self._share)
        parts = {
            layout: [task for task in tasks if task in self._share]
            for layout, tasks in self._batch.kinds.items()
        }
        return {layout: tasks for layout, tasks in parts.items() if tasks}

    @property
    def alike(self) -> bool:
        """Whether there are tasks to run side by side."""
        return not all(map(self._is_single, self._kinds.values()))

    @property
    def scale(self) -> str:
        """The number of tasks and the size of one, each to a factor of two."""
        entries = sum(tensor.numel() for tensor in tensors_of(self._batch.task(self._share[0])))
        return f"2^{len(self._share).bit_length()} tasks of 2^{entries.bit_length()}"

    def _add_stacked(
        self, results: TaskSum, tasks: Sequence[int], draws: dict[str, bool], keep_states: bool
    ) -> None:
        problem = StackedTasks(self._problem, len(tasks), draws)
        state = problem.begin(self._inner, self._start, [self._keys[task] for task in tasks])
        result = self._estimator(problem, self._inner, state, *self._batch.stacked(tasks))
        assert problem.task_losses is not None
        costs = result.details.get("costs", [result.cost] * len(tasks))
        gradient = result.gradient
        if self._estimator.adds_up:
            gradient = {name: total / len(tasks) for name, total in gradient.items()}
        result = dataclasses.replace(result, gradient=gradient, cost=total_cost(costs))
        apart = keep_states or self._rules
        states = problem.apart(result.state, self._start) if apart else []
        observed = self._observed(states)
        kept = states if keep_states else []
        results.add(tasks, result, problem.task_losses, kept, observed)

    def obstacle(self) -> str | None:
        """Return why these tasks cannot run side by side, as a sentence with the remedy."""
        estimator, inner = type(self._estimator).__name__, type(self._inner).__name__
        if not self._estimator.separable:
            return (
                f"{estimator} does not say of itself that it is separable. Use batching='loop', or "
                "Unrolled, ForwardMode, FirstOrder, OneStep, Reptile, or Implicit with a solver "
                "that draws nothing."
            )
        if not is_coordinatewise(self._inner, InnerLearner):
            return (
                f"{inner} does not say how each coordinate moves by itself. Use batching='loop', "
                "or SGD, Adam or GradientFlow."
            )
        obstacles = self._known.obstacles
        for layout, tasks in self._kinds.items():
            if self._is_single(tasks):
                continue
            kind = self._kind(layout)
            if kind not in obstacles:
                if self._chooses and (why := self._refuses_two(layout, tasks[0])) is not None:
                    return why
                obstacles[kind] = self._difference(layout, tasks[:_COMPARED])
            if obstacles[kind] is not None:
                return obstacles[kind]
        return None

    def _kind(self, layout: str) -> Any:
        """Return what tasks have in common that run alike, to be compared."""
        problem = self._problem
        # What an estimator computes may be set anew between calls.
        does = self._estimator.traits
        return layout, problem.modes(), id(problem.train_loss), id(problem.valid_loss), does

    @uncompiled()
    def _refuses_two(self, layout: str, task: int) -> str | None:
        return self._memory.refuses_two(self._amount(layout), lambda: self._alone(task))

    @uncompiled()
    def shortage(self) -> str | None:
        """Return why no two tasks fit in memory; else no more run side by side than do."""
        for layout, tasks in self._kinds.items():
            if self._is_single(tasks):
                continue
            draws = self._known.draws.setdefault(self._kind(layout), {})

            def run(count: int, tasks: Any = tasks, draws: Any = draws) -> None:
                self._add_stacked(TaskSum(), tasks[:count], draws, False)

            most = min(len(tasks), self._chunk)
            try:
                at_once, why = self._memory.fitting(self._amount(layout), run, most)
            except Exception as error:
                at_once, why = self._known.fitting[self._amount(layout)] = 1, self._failure(error)
            if at_once is not None and at_once < min(most, _COMPARED):
                return why
            if at_once is not None and at_once < most:
                self._at_once[layout] = at_once
        return None

    def _failure(self, error: Exception) -> str:
        """Return what failed side by side, or raise what fails one by one, too."""
        self.one_by_one(False, {})
        return f"it failed side by side: {brief(error)}"

    def _amount(self, layout: str) -> str:
        """Return what the memory of a task depends on, in words that a checkpoint can hold."""
        return f"{layout}, {self._estimator.traits}"

    @uncompiled()
    def _difference(self, layout: str, tasks: Sequence[int]) -> str | None:
        """Return how tasks that are alike differ side by side from one by one, if they do."""
        alone = [self._alone(task) for task in tasks]
        why = self._problem.needs_own_pass()
        if why is not None:
            return f"{why}, which needs a pass for each task. Use batching='loop'."
        try:
            found = self._stacked({layout: tasks}, False)
        except Exception as error:
            return f"torch.vmap cannot run it: {brief(error)} Use batching='loop'."
        losses = torch.stack([result.valid_loss for result in alone])
        pairs = [(found.details["task_losses"], losses, losses)]
        for name, gradient in found.gradient.items():
            each = torch.stack([result.gradient[name] for result in alone])
            pairs.append((gradient, each.mean(0), each))
        observed = self._observed([result.state for result in alone])
        for name, tensors in found.details.get("observed", {}).items():
            for own, tensor in tensors.items():
                each = torch.stack([one[name][own] for one in observed])
                pairs.append((tensor, each.sum(0), each))
        off = _largest_difference(pairs)
        if not off <= 1:
            return (
                f"the results differ from those of one task after the other, by {off:.1e} times "
                "what rounding explains. Use batching='loop'."
            )
        return None

    @uncompiled()
    def faster(self) -> tuple[str, str]:
        """Return the faster way, ``"vmap"`` or ``"loop"``, and the times that tell it."""
        count = len(self._share)
        few = min(_COMPARED, count)
        try:
            stacked = min(
                self._seconds(lambda: self._stacked(self._kinds, False)) for _ in range(2)
            )
        except Exception as error:
            # What fails one by one, too, tells nothing of the two ways.
            return "loop", self._failure(error)
        # As often, so that a pause of the machine is not taken for the slower way.
        alone = (self._seconds(lambda: self.one_by_one(False, {}, few)) for _ in range(2))
        loop = min(alone) * count / few
        told = f"{count} tasks took {stacked:.3g} s side by side and about {loop:.3g} s one by one"
        if self._at_once:
            fewest = min(self._at_once, key=self._at_once.__getitem__)
            why = self._known.fitting[self._amount(fewest)][1]
            told += f"; side by side are {self._at_once[fewest]} at a time, since {why}"
        return ("vmap" if stacked < loop else "loop"), told

    def _seconds(self, call: Callable[[], object]) -> float:
        devices = [d for d in self._problem.devices() if d.type != "cpu"]
        started = time.perf_counter()
        call()
        for device in devices:
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started


def _largest_difference(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Return the largest difference of found and expected tensors, in units of rounding.

    Args:
        pairs: Found and expected tensors, and what these are sums of, which gives their scale.
    """
    pairs = [pair for pair in pairs if pair[0].numel()]
    largest = max(float(parts.abs().max()) for _, _, parts in pairs)
    differences = [0.0]
    for found, expected, parts in pairs:
        eps = torch.finfo(found.dtype).eps
        # A tensor that is all rounding, such as a bias before BatchNorm, has no scale of its own.
        allowed = eps**0.5 * float(parts.abs().max()) + eps**0.75 * largest
        difference = float((found - expected).abs().max())
        differences.append(difference / allowed if difference else 0.0)
    return max(differences)
