"""Iterates of adaptation to tasks, replayed in shuffled mini-batches (WarpGrad, algorithm 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, DataError, UnsupportedError
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState
from metatoolkit.training.checks import check_numbers
from metatoolkit.training.task_batches import TaskBatch
from metatoolkit.training.task_sum import TaskSum


@dataclasses.dataclass(frozen=True)
class Iterate:
    """A state on the way of the adaptation to a task, with what a step from it takes.

    Attributes:
        task: Number of the task among those of its filling.
        state: The state θ_k.
        train_batch: Support batch of the step from it.
        valid_batch: Query batch of the task.
    """

    task: int
    state: InnerState
    train_batch: Any
    valid_batch: Any


class ReplayBuffer:
    """Holds the states that adaptation to tasks goes through, to learn λ from them offline.

    Algorithm 2 of Flennerhag et al. 2020 (arXiv 1909.00025): tasks are adapted to under the
    present λ, which fills the buffer with (task, θ_k); the buffer is emptied in shuffled
    mini-batches, each of which moves λ once along the mean of
    :class:`metatoolkit.hypergradients.WarpGrad` of one step. The mean over mini-batches of any
    size, each weighted by its length, is that over the whole buffer at one λ. Iterates keep their
    random keys and buffers, so that dropout masks are those of the adaptation.

    Memory: T inner states for each task. Cost of filling: 3 F for each step, of T − 1.

    Args:
        problem: The bilevel problem; its initial state is that of the model.
        inner: Inner learner.
        steps: Number of inner steps T, from each of which one state is kept.
        seed: Seed of the random keys and of the order.

    Raises:
        ConfigurationError: ``steps`` is below 1, or ``inner`` is no inner learner.
        UnsupportedError: λ sets the initial state, which iterates apart from their way tell
            nothing of.

    Example:
        >>> import metatoolkit as mt
        >>> def squared_error(model, meta, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> model = mt.networks.MLP(inputs=1, hidden=(8,), classes=1)
        >>> meta = mt.metaparameters.insert_warp_layers(model)
        >>> problem = mt.BilevelProblem(model, meta, squared_error, squared_error)
        >>> optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3)
        >>> inner, estimator = mt.inner.SGD(lr=0.1), mt.hypergradients.WarpGrad()
        >>> buffer = ReplayBuffer(problem, inner, steps=20)
        >>> for tasks in mt.tasks.FunctionTasks("sinusoid", shots=5, queries=5, tasks=4):
        ...     buffer.fill(tasks)
        ...     for iterates in buffer.mini_batches(size=16):
        ...         gradient = buffer.hypergradient(estimator, iterates).gradient
        ...         for name, parameter in problem.meta_parameters().items():
        ...             parameter.grad = gradient[name]
        ...         optimizer.step()
        ...     break
        >>> len(buffer)
        0
    """

    def __init__(
        self, problem: BilevelProblem, inner: InnerLearner, steps: int, seed: int = 0
    ) -> None:
        require_learner(inner)
        check_numbers(steps=steps)
        if problem.initial is not None:
            raise UnsupportedError(
                "λ sets the initial state of this problem, of which single iterates tell nothing; "
                "use WarpGrad(start=...) while tasks are adapted to, or a problem without initial."
            )
        self._problem, self._inner = problem, inner
        self.steps = steps
        self.seed = seed
        self._iterates: list[Iterate] = []
        self._fillings = self._emptyings = 0
        self._empties = False

    def __len__(self) -> int:
        """Return the number of iterates that are held."""
        return len(self._iterates)

    def fill(self, tasks: Any) -> None:
        """Adapt to tasks under the present λ, and add the states before each step.

        Args:
            tasks: A batch of tasks, as for :func:`metatoolkit.over_tasks`.
        """
        problem, inner = self._problem, self._inner
        batch = TaskBatch(tasks, self.steps)
        start, meta = inner.init(problem, self.seed), problem.meta_parameters()
        root = fold_in(start.key, Stream.RESET, self._fillings)
        self._fillings += 1
        for task in range(batch.count):
            state = start.replaced(key=fold_in(root, Stream.TASK, task))
            supports, query = batch.task(task)
            for index, support in enumerate(supports):
                self._iterates.append(Iterate(task, state, support, query))
                if index < self.steps - 1:
                    state, _ = inner.step(problem, state, meta, support)

    def mini_batches(self, size: int | None = None) -> Iterator[list[Iterate]]:
        """Empty the buffer in an order drawn from the seed.

        Args:
            size: Number of iterates at a time; the last ones may be fewer. ``None`` for all.

        Yields:
            Iterates, each once.

        Raises:
            ConfigurationError: ``size`` is below 1.
        """
        if size is not None and size < 1:
            raise ConfigurationError(f"size is {size}; at least 1 is needed, or None for all.")
        key = fold_in(self.seed, Stream.REPLAY_ORDER, self._emptyings)
        self._emptyings += 1
        generator = torch.Generator().manual_seed(key)
        order = torch.randperm(len(self), generator=generator).tolist()
        self._iterates = [self._iterates[place] for place in order]
        self._empties = True
        try:
            while self._iterates:
                count = len(self) if size is None else size
                taken, self._iterates = self._iterates[:count], self._iterates[count:]
                yield taken
        finally:
            self._empties = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to draw the same iterates in the same order.

        Raises:
            UnsupportedError: :meth:`mini_batches` is under way, the order of which it would lose.
        """
        if self._empties:
            raise UnsupportedError(
                "the buffer is being emptied in mini-batches; take its state before or after that."
            )
        iterates = [{**vars(one), "state": one.state.state_dict()} for one in self._iterates]
        return {"fillings": self._fillings, "emptyings": self._emptyings, "iterates": iterates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            saved: What it returned; its batches are those of the buffer from now on.
        """
        self._fillings, self._emptyings = saved["fillings"], saved["emptyings"]
        self._iterates = [
            Iterate(**{**one, "state": InnerState.from_state_dict(one["state"])})
            for one in saved["iterates"]
        ]

    def hypergradient(self, estimator: Estimator, iterates: Sequence[Iterate]) -> Hypergradient:
        """Return the mean of an estimator's results at iterates, under the present λ.

        Args:
            estimator: An estimator of one inner step, such as ``WarpGrad()``, exact or first order.
            iterates: At least one.

        Returns:
            The mean of gradients and outer losses, with the cost of all; its state is the first
            iterate. Its details are ``"task_losses"``, one for each iterate.

        Raises:
            ConfigurationError: The estimator is none, or takes several steps.
            UnsupportedError: The estimator carries something from call to call.
            DataError: There is no iterate.
        """
        require_estimator("estimator", estimator)
        name = type(estimator).__name__
        if estimator.horizon != 1:
            raise ConfigurationError(
                f"{name} takes {estimator.horizon} inner steps; from an iterate one is taken."
            )
        if estimator.windows or estimator.carries:
            raise UnsupportedError(
                f"{name} goes on in each call from what a former one left; use WarpGrad()."
            )
        if not iterates:
            raise DataError("there is no iterate; fill the buffer first.")
        results = TaskSum()
        for number, one in enumerate(iterates):
            arguments = (one.state, [one.train_batch], one.valid_batch)
            result = estimator(self._problem, self._inner, *arguments)
            results.add([number], result, result.valid_loss.reshape(1))
        return results.mean(iterates[0].state, {})
