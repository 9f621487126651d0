"""How Unrolled differentiates steps: by which product, and with how many graphs kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from metatoolkit.hypergradients.cost import Cost
from metatoolkit.hypergradients.kept_graphs import KeptGraphs
from metatoolkit.hypergradients.product_choice import ProductChoice, ProductOption
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@dataclasses.dataclass
class Plan:
    """How some steps are differentiated.

    Attributes:
        split: Whether gradients are taken apart from updates, as in mixed mode.
        first: Index of the first step whose graph is kept.
        graph: Graph of that step, where it has been built.
        cost: What was taken to find out.
    """

    split: bool
    first: int
    graph: StepGraph | None = None
    cost: Cost = dataclasses.field(default_factory=Cost)


class StepPlans:
    """Plans of calls, from what was named and what is measured.

    Args:
        product: How adjoints are multiplied with Jacobians, or ``"auto"``.
        keep_graphs: Number of last steps that keep their graphs, or ``"auto"``.
        memory_budget: Bytes that graphs may take.
        saving: Whether memory is to be saved, so that ``"auto"`` keeps one graph.

    Attributes:
        graphs: How many graphs are kept.
        products: Which product is taken.

    Raises:
        ConfigurationError: A number is out of range, or a name is unknown.
    """

    counts_calls = True

    def __init__(
        self,
        product: ProductOption,
        keep_graphs: int | Literal["auto"],
        memory_budget: int,
        saving: bool,
    ) -> None:
        self._auto = {"product": product == "auto", "keep_graphs": keep_graphs == "auto"}
        self.products = ProductChoice(product)
        self.graphs = KeptGraphs(
            1 if saving and keep_graphs == "auto" else keep_graphs, memory_budget
        )

    def repeats(self, window: int) -> bool:
        """Return whether a call takes steps twice, as far as is known.

        Args:
            window: Number of steps that are differentiated.
        """
        # In mixed mode each step has passes of two kinds.
        return self.products.latest == "forward_over_reverse" or window > self.graphs.latest

    def details(self, window: int, first: int) -> dict[str, Any]:
        """Return what was chosen in the last call, by name.

        Args:
            window: Number of steps that were differentiated.
            first: Index of the first whose graph was kept.
        """
        chosen = {"product": self.products.latest, "keep_graphs": window - first}
        return {name: value for name, value in chosen.items() if self._auto[name]}

    def plan(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batches: Sequence[Any],
        keeps_all: bool,
        first_order: bool,
    ) -> Plan:
        """Return how some steps are differentiated.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State before the first step.
            meta: Meta-parameters by name.
            batches: One training batch for each step.
            keeps_all: Whether the graphs of all steps are needed.
            first_order: Whether second derivatives are left out.
        """
        window = len(batches)
        arguments = (problem, inner, state, meta, batches)
        keep = window if keeps_all else self.graphs.least
        if first_order:
            return Plan(True, max(window - keep, 0))
        graph, cost = self.products.choose(*arguments)
        split = self.products.latest == "forward_over_reverse"
        if graph is None and not split and not keeps_all:
            keep, graph = self.graphs.fitting(*arguments)
            cost = Cost(forward=int(graph is not None), backward=int(graph is not None))
        first = max(window - keep, 0)
        return Plan(split, first, None if first else graph, cost)
