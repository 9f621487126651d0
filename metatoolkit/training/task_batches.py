"""A batch of tasks: how it is read, and its tasks one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.state import describe, tree_map

_SHARED = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_FORMS = (
    "give a tuple (support, query) whose tensors have a leading dimension of tasks, or a list of "
    "such tuples, one for each task"
)


class TaskBatch:
    """Tasks, each with support batches for the inner steps and a query batch for the outer loss.

    A tuple ``(support, query)`` holds all tasks: any pytrees, whose tensors have a leading
    dimension of tasks; numbers and strings are common to all. A list holds a tuple
    ``(support, query)`` for each task, whose sizes may differ. A support that is a list has one
    batch for each inner step; any other is the batch of every step.

    Args:
        batch: The batch, in one of the two forms.
        horizon: Number of inner steps.

    Attributes:
        count: Number of tasks, at least 1.

    Raises:
        DataError: It has neither form, may as well be the other one, or holds no task or one
            without support.
        ShapeError: Leading dimensions differ.
    """

    def __init__(self, batch: Any, horizon: int) -> None:
        self.listed = isinstance(batch, list)
        if self.listed:
            for number, task in enumerate(batch):
                _check_pair(task, f"task {number} of the list")
            _refuse_list_of_support_and_query(batch)
            self.count = len(batch)
            self._pairs = [_by_step(task, horizon) for task in batch]
        else:
            _check_pair(batch, "the batch of tasks")
            self.count = _leading_dimension(batch)
            self._pairs = [_by_step(batch, horizon)]
        if self.count == 0:
            raise DataError("the batch holds no task; at least one is needed.")
        for number, (supports, _) in enumerate(self._pairs):
            _refuse_empty(supports, f"task {number}" if self.listed else "each task")

    def task(self, number: int) -> tuple[list[Any], Any]:
        """Return the support batches of a task, one per inner step, and its query batch.

        Args:
            number: Number of the task, from 0 on.
        """
        if self.listed:
            return self._pairs[number]
        return _mapped(self._pairs[0], lambda tensor: tensor[number])

    def stacked(self, tasks: Sequence[int]) -> tuple[list[Any], Any]:
        """Return several tasks as one, each tensor with a leading dimension of tasks.

        Args:
            tasks: Numbers of tasks that are alike, ascending and, in the first form, without gaps.
        """
        if self.listed:
            return _joined([self._pairs[task] for task in tasks])
        return _mapped(self._pairs[0], lambda tensor: tensor[tasks[0] : tasks[-1] + 1])

    @functools.cached_property
    def kinds(self) -> dict[str, Sequence[int]]:
        """The numbers of tasks that are alike, by what they are made of.

        That is the shapes and types of tensors, and all else.
        """
        if not self.listed:
            return {_layout(self.task(0)): range(self.count)}
        found: dict[str, list[int]] = {}
        for number, pair in enumerate(self._pairs):
            found.setdefault(_layout(pair), []).append(number)
        return dict(found)


def _check_pair(value: Any, what: str) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        given = type(value).__name__
        if isinstance(value, tuple | list):
            given += f" of {len(value)}"
        raise DataError(
            f"{what} is a {given}; {_FORMS}. Where a DataLoader has made lists of tuples, give "
            "tuple(map(tuple, batch))."
        )


def _refuse_list_of_support_and_query(tasks: list[tuple[Any, Any]]) -> None:
    """Raise where two tasks may be the support and query, inputs and targets, of all tasks."""
    parts = [part for task in tasks for part in task]
    if len(tasks) != 2 or not any(isinstance(part, Tensor) for part in parts):
        return
    sizes = {tuple(tensor.shape[:1]) for part in parts for tensor in tensors_of(part)}
    if len(sizes) == 1:
        raise DataError(
            "the batch is a list of two tuples whose tensors have one leading dimension: two "
            "tasks, or support and query of all tasks in a list instead of a tuple. Give a tuple "
            "(support, query) for these; for two tasks whose batches are single tensors, stack "
            "them in a tuple (supports, queries)."
        )


def _refuse_empty(supports: list[Any], whose: str) -> None:
    """Raise where a support has no example: a mean over none is NaN, and its gradient zero."""
    for support in supports[:1] if _is_common(supports) else supports:
        tensors = tensors_of(support)
        if tensors and not any(tensor.numel() for tensor in tensors):
            raise DataError(
                f"the support of {whose} holds no example; give each task at least one, or leave "
                "the task out."
            )


def _by_step(pair: tuple[Any, Any], horizon: int) -> tuple[list[Any], Any]:
    support, query = pair
    if not isinstance(support, list):
        return [support] * horizon, query
    if isinstance(query, list) and len(query) == len(support) == horizon:
        raise DataError(
            f"support and query are lists of {horizon} alike: parts of one batch, or, as a list of "
            "support is read, a batch for each inner step. Give tuple(support) and tuple(query) "
            "where they are parts, and a tuple for the query in any case."
        )
    if len(support) != horizon:
        raise DataError(
            f"support is a list of {len(support)}, but the estimator takes {horizon} inner steps: "
            "a list has one batch for each; for a single batch of several parts, which every step "
            "takes, give a tuple."
        )
    return support, query


def _mapped(
    pair: tuple[list[Any], Any], function: Callable[[Tensor], Tensor]
) -> tuple[list[Any], Any]:
    """Map the tensors of a task; a batch that all steps take is mapped once."""
    supports, query = pair
    seen: dict[int, Any] = {}
    for support in supports:
        if id(support) not in seen:
            seen[id(support)] = tree_map(function, support)
    return [seen[id(support)] for support in supports], tree_map(function, query)


def _layout(pair: tuple[list[Any], Any]) -> str:
    """Return what a task is made of; objects of unknown kinds are told by their identity."""
    supports, query = pair

    def of_tensor(tensor: Tensor) -> Any:
        return tuple(tensor.shape), tensor.dtype, tensor.device

    def of_object(leaf: Any) -> Any:
        return leaf if leaf is None or isinstance(leaf, _SHARED) else (type(leaf), id(leaf))

    once = _is_common(supports)
    parts = [supports[:1] if once else supports, query]
    return f"{len(supports)}, {once}: {tree_map(of_tensor, parts, on_object=of_object)}"


def _is_common(supports: list[Any]) -> bool:
    """Return whether one batch is that of every step."""
    return all(support is supports[0] for support in supports)


def _joined(pairs: list[tuple[list[Any], Any]]) -> tuple[list[Any], Any]:
    """Stack the tensors of tasks that are alike; a batch that all steps take is stacked once."""

    def stack(parts: list[Any]) -> Any:
        leaves = [tensors_of(part) for part in parts]
        stacked = map(torch.stack, zip(*leaves, strict=True))
        return tree_map(lambda _: next(stacked), parts[0])

    supports = pairs[0][0]
    common = _is_common(supports)
    steps = range(1 if common else len(supports))
    joined = [stack([pair[0][step] for pair in pairs]) for step in steps]
    return joined * len(supports) if common else joined, stack([pair[1] for pair in pairs])


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of a batch, in the order of :func:`metatoolkit.state.tree_map`.

    Args:
        tree: Any batch.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    tree_map(note, tree)
    return found


def _leading_dimension(batch: tuple[Any, Any]) -> int:
    """Return the number of tasks that all tensors of a batch agree on."""
    first: dict[int, str] = {}
    for name, part in zip(("support", "query"), batch, strict=True):

        def note(tensor: Tensor, name: str = name) -> Tensor:
            if tensor.dim() == 0:
                raise ShapeError(f"{name} holds a 0-d tensor; {_FORMS}.")
            first.setdefault(len(tensor), f"{name} holds one of shape {tuple(tensor.shape)}")
            return tensor

        def other(leaf: Any, name: str = name) -> Any:
            if leaf is not None and not isinstance(leaf, _SHARED):
                raise DataError(
                    f"{name} holds a {type(leaf).__name__}, which cannot be divided among tasks; "
                    "make tensors of it, or give a list of tasks."
                )
            return leaf

        tree_map(note, part, on_object=other)
    if len(first) > 1:
        raise ShapeError(
            f"the leading dimensions differ: {' and '.join(list(first.values())[:2])}; {_FORMS}."
        )
    if not first:
        raise DataError(f"the batch of tasks holds no tensor ({describe(batch)}); {_FORMS}.")
    return next(iter(first))
