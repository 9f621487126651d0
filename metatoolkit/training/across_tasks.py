"""An estimator that is called on batches of tasks, in the way that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState
from metatoolkit.training.ranks import Ranks
from metatoolkit.training.task_batches import TaskBatch
from metatoolkit.training.task_batching import Mode, TaskBatching
from metatoolkit.training.task_rules import TaskRules, refuse_rules_of_tasks
from metatoolkit.training.task_run import Known, TaskRun

_ALL_UNLIKE = "no two tasks are alike; pad_tasks makes those so that differ in their examples alone"


class AcrossTasks:
    """Calls an estimator on batches of tasks.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator.
        batching: How the tasks run.
        observes: Whether tasks are observed for the parts of λ with rules of their own.

    Attributes:
        known: What is known of the tasks.
        ranks: The processes that share the tasks, or ``None``.

    Raises:
        ConfigurationError: An argument is another kind of thing, or there are no processes to
            share the tasks.
        UnsupportedError: The estimator carries something from call to call.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        estimator: Any,
        batching: TaskBatching | Mode,
        observes: bool = True,
    ) -> None:
        require_learner(inner)
        require_estimator("estimator", estimator)
        if estimator.windows or estimator.carries:
            raise UnsupportedError(
                f"{type(estimator).__name__} goes on in each call from what a former one left, "
                "which belongs to one inner problem; tasks are many. Use Unrolled, FirstOrder or "
                "Reptile, or Implicit without warm_start."
            )
        self.batching = batching if isinstance(batching, TaskBatching) else TaskBatching(batching)
        self.ranks = Ranks() if self.batching.sharded else None
        self._components: tuple[BilevelProblem, InnerLearner, Estimator]
        self._components = (problem, inner, estimator)
        self.known = Known()
        self._rules = TaskRules(problem.meta) if observes else None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reports, and writes checkpoints."""
        return self.ranks is None or self.ranks.rank == 0

    def begin(self, state: InnerState, details: Sequence[Mapping[str, Any]] = ()) -> InnerState:
        """Return an initial state with the parameters that the present λ sets.

        Args:
            state: The initial state under any λ.
            details: What this told of batches of tasks, all at the same λ, of which parts move by
                rules of their own first.
        """
        if self._rules is not None:
            self._rules.take_in(details)
        problem = self._components[0]
        with torch.no_grad():
            given = problem.initial_parameters(problem.meta_parameters())
        return state.replaced(
            parameters=state.parameters | {n: t.clone() for n, t in given.items()}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the choices that were measured: a resumed training has the same numbers."""
        return {"choices": dict(self.known.choices), "fitting": dict(self.known.fitting)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on with choices.

        Args:
            saved: What :meth:`state_dict` returned.
        """
        for name in ("choices", "fitting"):
            measured = saved.get(name, {})
            setattr(self.known, name, {of: (found, why) for of, (found, why) in measured.items()})

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
            UnsupportedError: The tasks cannot run side by side, as they shall.
            RankError: Another process failed, is gone, or has other tasks or parameters.
        """
        if start.step != 0:
            raise ConfigurationError(
                f"the state is {start.step} steps from the initial one, where each task begins; "
                "with tasks= take no base steps."
            )
        root = fold_in(start.key, Stream.RESET, number) if number else start.key
        batch = TaskBatch(tasks, self._components[2].horizon)
        if self.ranks is None:
            return self._run(batch, start, root, range(batch.count), keep_states)
        return self.ranks.mean(
            self._components[0],
            (start, batch),
            lambda share: self._run(batch, start, root, share, keep_states),
            self._rules,
        )

    def _run(
        self, batch: TaskBatch, start: InnerState, root: int, share: range, keep_states: bool
    ) -> Hypergradient:
        mode, chunk = self.batching.mode, self.batching.chunk
        given = self._components, batch, start, root, self.known, chunk, share, self._rules
        run = TaskRun(*given, chooses=mode == "auto")
        if mode == "loop":
            return run.one_by_one(keep_states, {})
        if not run.alike:
            return run.one_by_one(keep_states, {"reason": _ALL_UNLIKE})
        obstacle = run.obstacle()
        if mode == "vmap":
            if obstacle is not None:
                raise UnsupportedError(f"the tasks cannot run side by side: {obstacle}")
            return run.side_by_side(keep_states, {})
        if obstacle is not None:
            return run.one_by_one(keep_states, {"reason": obstacle})
        # Which way is faster depends on how many tasks there are, and on how large they are.
        choices, scale = self.known.choices, run.scale
        if scale not in choices or choices[scale][0] == "vmap":
            shortage = run.shortage()
            if shortage is not None:
                return run.one_by_one(keep_states, {"reason": shortage})
        if scale not in choices:
            choices[scale] = run.faster()
        choice, reason = choices[scale]
        if choice == "loop":
            return run.one_by_one(keep_states, {"reason": reason})
        return run.side_by_side(keep_states, {"reason": reason})


def across_tasks(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimator: Any,
    batching: TaskBatching | Mode | None,
) -> AcrossTasks | None:
    """Return what calls an estimator on batches of tasks, or ``None`` for a single problem.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator, or ``None``.
        batching: How the tasks run; ``None`` where there are none.

    Raises:
        ConfigurationError: There are no tasks, but parts of λ that they move.
    """
    if batching is not None:
        return AcrossTasks(problem, inner, estimator, batching)
    if estimator is not None:
        refuse_rules_of_tasks(problem)
    return None
