"""Tasks side by side: one bilevel problem whose parameters have a leading dimension of tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Keys, SideBySide
from metatoolkit.state import InnerState, Tensors, tree_map
from metatoolkit.stateless.micro_batches import count_examples
from metatoolkit.training.task_batches import tensors_of


class StackedTasks(BilevelProblem):
    """The problem of several tasks at once, which share λ alone.

    Its inner parameters and buffers are those of the problem with a leading dimension of tasks,
    and so are the tensors of its batches. Its training loss is the sum over the tasks, so that the
    gradient in the parameters of each task is that of the task's own loss; its outer loss is their
    mean. Each loss is one ``torch.vmap`` of the problem's loss; random numbers are those that each
    task would draw by itself.

    Args:
        problem: The problem of a single task, whose modules and losses are shared.
        count: Number of tasks.
        draws: Whether each loss draws random numbers, by name; what is found out is added.

    Attributes:
        task_losses: The outer losses of the tasks in the last evaluation, of shape (tasks,).
        told: Names of attributes that an evaluation sets, which a compiled call sets, too.
    """

    _example_dim = 1
    told = ("task_losses",)

    def __init__(self, problem: BilevelProblem, count: int, draws: dict[str, bool]) -> None:
        vars(self).update(vars(problem))
        self.blocks = count
        self._draws = draws
        self.task_losses: Tensor | None = None

    @override
    def initial_parameters(self, meta: Tensors) -> Tensors:
        """Return the values that λ sets, the same for every task."""
        given = super().initial_parameters(meta)
        return {name: self._expanded(tensor) for name, tensor in given.items()}

    def begin(self, inner: InnerLearner, start: InnerState, keys: list[int]) -> InnerState:
        """Return the initial state of all tasks.

        Args:
            inner: Inner learner.
            start: Initial state of each, before the first step.
            keys: Random key of each task.
        """
        parameters = {name: self._expanded(t) for name, t in start.parameters.items()}
        return start.replaced(
            parameters=parameters,
            buffers={name: self._expanded(t) for name, t in start.buffers.items()},
            optimizer=inner.init_slots(parameters),
            key=Keys(keys),
        )

    def apart(self, state: InnerState, start: InnerState) -> list[InnerState]:
        """Return the state of each task.

        Args:
            state: State of all tasks.
            start: Initial state of a task, which tells the optimizer's numbers that all share.
        """
        assert isinstance(state.key, Keys)

        def of(task: int) -> dict[str, Any]:
            slots = {
                slot: {
                    name: tensor
                    if tensor.shape == start.optimizer[slot][name].shape
                    else tensor[task]
                    for name, tensor in values.items()
                }
                for slot, values in state.optimizer.items()
            }
            return {
                "parameters": {name: t[task] for name, t in state.parameters.items()},
                "buffers": {name: t[task] for name, t in state.buffers.items()},
                "optimizer": slots,
            }

        keys = state.key.each()
        return [state.replaced(**of(task), key=keys[task]) for task in range(self.blocks)]

    def _expanded(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.blocks, *tensor.shape).contiguous()

    @override
    def _evaluate(
        self, loss: Any, kind: str, parameters: Tensors, meta: Tensors, *rest: Any
    ) -> tuple[Tensor, Tensors]:
        if kind == "valid_loss":
            self.task_losses = None
            self._seen: int | Tensor = 0
        return super()._evaluate(loss, kind, parameters, meta, *rest)

    @override
    def _evaluate_once(
        self, loss: Any, kind: str, at: Tensors, meta: Tensors, *rest: Any, weight: Any = None
    ) -> tuple[Tensor, Tensors]:
        buffers, batch, key = rest
        assert isinstance(key, Keys)
        shared = {f"meta.{name}": tensor for name, tensor in meta.items()}

        def of_task(
            parameters: Tensors, buffers: Tensors, leaves: list[Tensor]
        ) -> tuple[Tensor, Tensors]:
            remaining = iter(leaves)
            tensors = {f"model.{name}": tensor for name, tensor in parameters.items()} | shared
            own = tree_map(lambda _: next(remaining), batch)
            return self._passes.run(loss, kind, tensors, buffers, own, int(key))

        given = at, buffers, tensors_of(batch)
        drawn = self._draws.get(kind, True)
        if not drawn:
            try:
                values, after = torch.vmap(of_task)(*given)
            except RuntimeError as error:
                # A loss may begin to draw, as where dropout gets another probability.
                if "called random operation" not in str(error):
                    raise
                drawn = True
        if drawn:
            with SideBySide(key.each()) as mode:
                values, after = torch.vmap(of_task, randomness="different")(*given)
            self._draws[kind] = mode.drawn or self._draws.get(kind, False)
        if (why := self.needs_own_pass()) is not None:
            raise UnsupportedError(f"{why}, so that tasks need passes of their own.")
        weighted = values if weight is None else weight.to(values.dtype) * values
        if kind != "valid_loss":
            return weighted.sum(), after
        self._note(values.detach(), batch, weight)
        return weighted.mean(), after

    def _note(self, losses: Tensor, batch: Any, weight: Tensor | None) -> None:
        """Take in the outer losses on a batch, or on a piece of one."""
        cut = "valid_loss" in self.micro_batched.sizes
        count = count_examples(batch, self._example_dim) if cut else 1
        share = count if weight is None else weight.to(losses.dtype)
        former, self._seen = self._seen, self._seen + share
        if self.task_losses is not None:
            losses = (former * self.task_losses + share * losses) / self._seen
            if isinstance(share, Tensor):
                # A task may have had nothing but padding so far.
                losses = torch.where(share + former != 0, losses, 0.0)
        self.task_losses = losses
