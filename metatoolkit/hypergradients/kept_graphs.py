"""How many graphs of inner steps are kept at once, by what one of them holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import saved_by
from metatoolkit.stateless.graphs import graph_nodes

MEMORY_BUDGET = 2**29
"""Bytes that graphs may take where nothing else is said: 512 MiB."""


def graph_bytes(outputs: Sequence[Tensor], given: Iterable[Tensor] = ()) -> int:
    """Return the bytes of the tensors that a graph holds for its backward pass.

    Tensors that share memory are counted once. What a custom ``autograd.Function`` keeps, and what
    hooks on saved tensors have taken elsewhere, is not looked at.

    Args:
        outputs: What the graph computed.
        given: Tensors that are there anyway.
    """
    apart = {tensor.untyped_storage()._cdata for tensor in given}
    sizes: dict[int, int] = {}
    for node in graph_nodes(outputs):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(size for place, size in sizes.items() if place not in apart)


def _saved(node: Any) -> Iterator[Tensor]:
    for name in dir(type(node)):
        if name.startswith("_saved_"):
            yield from (leaf for leaf in tree_leaves(getattr(node, name)) if _is_dense(leaf))


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_sparse


class KeptGraphs:
    """The number of last steps whose graphs are kept.

    Args:
        count: The number, or ``"auto"``: as many as fit the budget.
        budget: Bytes that graphs may take.

    Attributes:
        latest: The number of the last call, or what is known of it before the first.
        least: A lower bound of it.
        most: An upper bound of it.

    Raises:
        ConfigurationError: A number is out of range.
    """

    counts_calls = True

    def __init__(self, count: int | Literal["auto"], budget: int) -> None:
        self._count: int | None = None
        if count != "auto":
            if not isinstance(count, int) or count < 1:
                raise ConfigurationError(
                    f"keep_graphs is {count!r}; accepted: 'auto', or a number of last steps of at "
                    "least 1."
                )
            self._count = count
        if budget < 0:
            raise ConfigurationError(
                f"memory_budget is {budget}; give the bytes that graphs may take, at least 0."
            )
        self._budget = budget
        self._sizes: dict[Any, int] = {}
        self.least = self._count or 1
        self.most = sys.maxsize if self._count is None else self._count
        self.latest = self.most

    def fitting(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batches: Sequence[Any],
    ) -> tuple[int, StepGraph | None]:
        """Return how many of some steps keep their graphs, and that of the first if it was built.

        It is built where the graphs of such steps were not measured before. One whose backward pass
        runs a part of the pass again, as with activation checkpointing, is taken for one that does
        not fit: who sets that wants to save memory.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State before the first step.
            meta: Meta-parameters by name.
            batches: One training batch for each step.
        """
        window = len(batches)
        if self._count is not None or window == 1:
            return self.least, None
        kind = step_layout(inner, state, meta, batches[0])
        if kind in self._sizes:
            return self._chosen(self._sizes[kind], window), None
        given = _tensors([meta, batches[0]])
        hooks: list[Any] = []

        def seen(*pair: Any) -> Any:
            hooks.append(pair)
            return pair

        with saved_by(seen):
            graph = StepGraph(problem, inner, state, meta, batches[0], through_state=False)
        after = graph.after.tensors()
        runs_again = hooks or graph.is_recorded
        size = self._budget + 1 if runs_again else graph_bytes(after, given)
        # The next graph begins at what this one ends with.
        size += sum(tensor.nbytes for tensor in after)
        self._sizes[kind] = size
        return self._chosen(size, window), graph

    def _chosen(self, size: int, window: int) -> int:
        self.latest = min(max(self._budget // max(size, 1), 1), window)
        return self.latest


def step_layout(
    inner: InnerLearner, state: InnerState, meta: Tensors, batch: Any
) -> tuple[Any, ...]:
    """Return what the costs of a step depend on: the learner's type, and shapes.

    Args:
        inner: Inner learner.
        state: State before the step.
        meta: Meta-parameters by name.
        batch: Training batch.
    """
    return (type(inner), *map(_layout, [*state.tensors(), *_tensors([meta, batch])]))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
