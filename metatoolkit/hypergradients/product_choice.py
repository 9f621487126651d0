"""How adjoints are multiplied with the Jacobian of a step, by what takes fewer operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metatoolkit.errors import ReplayError
from metatoolkit.hypergradients.arguments import require_choice
from metatoolkit.hypergradients.cost import Cost
from metatoolkit.hypergradients.flop_counter import flop_counter
from metatoolkit.hypergradients.kept_graphs import step_layout
from metatoolkit.hypergradients.mixed_mode import MixedStep
from metatoolkit.hypergradients.products import Adjoint, add_adjoints, norm, scaled
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.hypergradients.transforms import in_transform
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.graphs import graph_nodes

Product = Literal["reverse_over_reverse", "forward_over_reverse"]
ProductOption = Literal["auto", "reverse_over_reverse", "forward_over_reverse"]
_Known = weakref.WeakKeyDictionary[BilevelProblem, dict[Any, Product] | None]
_PRODUCTS = get_args(ProductOption)

# Below it, what is not counted decides: elementwise operations and calls of kernels.
_LARGEST_SHARE = 0.95


class ProductChoice:
    """The product of one step that takes fewer operations.

    Mixed mode is the cheaper one for convolutions, and where no derivative in the state before the
    step is needed: their double backward is one operation, where that of matrix products leaves out
    what nobody asks for. Other steps are not measured. Operations are counted and no time is taken,
    so that the choice is the same in every run and process.

    Args:
        product: The product that is named, or ``"auto"``.

    Attributes:
        latest: The product of the last call; before the first, what would be without a choice.

    Raises:
        ConfigurationError: There is no such product.
    """

    counts_calls = True

    def __init__(self, product: ProductOption) -> None:
        require_choice("product", product, _PRODUCTS)
        self._named = product != "auto"
        self.latest: Product = "reverse_over_reverse" if product == "auto" else product
        self._known: _Known = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: it measures anew, with the same results."""
        return {**vars(self), "_known": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _known=weakref.WeakKeyDictionary())

    def choose(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batches: Sequence[Any],
    ) -> tuple[StepGraph | None, Cost]:
        """Choose for some steps, and return the graph of the first, if it was built, and the cost.

        Where a network has convolutions, and was not measured before, a step is differentiated
        once either way. Mixed mode is left out where it has other numbers than the double
        backward, as with hooks that change gradients.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State before the first step.
            meta: Meta-parameters by name.
            batches: One training batch for each step.
        """
        if self._named:
            return None, Cost()
        self.latest = "reverse_over_reverse"
        if len(batches) > 1 or in_transform():
            return None, Cost()
        known = self._known.setdefault(problem, {})
        if known is None:
            return None, Cost()
        kind = step_layout(inner, state, meta, batches[0])
        if kind in known:
            self.latest = known[kind]
            return None, Cost()
        arguments = (problem, inner, state, meta, batches[0])
        graph, cost = StepGraph(*arguments, through_state=False), Cost(forward=1, backward=1)
        if not _has_convolutions(graph):
            # Nor will it have any with other shapes, which take longer to tell than a small step.
            self._known[problem] = None
            return graph, cost
        # What may run anything in its backward pass is not guessed at.
        if not graph.is_recorded:
            cost = Cost(forward=3, backward=3, hvp=2)
            if _is_cheaper_mixed(graph, *arguments):
                self.latest = "forward_over_reverse"
        known[kind] = self.latest
        return (graph if self.latest == "reverse_over_reverse" else None), cost


def _has_convolutions(graph: StepGraph) -> bool:
    return any("Convolution" in node.name() for node in graph_nodes(graph.after.tensors()))


def _is_cheaper_mixed(graph: StepGraph, *arguments: Any) -> bool:
    adjoint: Adjoint = [_some_vector(tensor) for tensor in graph.after.tensors()]
    try:
        one, reverse = _counted(StepGraph, adjoint, arguments)
        other, mixed = _counted(MixedStep, adjoint, arguments)
    except ReplayError:
        raise
    except RuntimeError:
        # An operation without forward mode, which says so in many ways.
        return False
    return mixed <= _LARGEST_SHARE * reverse and _agree(one, other)


def _counted(
    build: Callable[..., StepGraph | MixedStep], adjoint: Adjoint, arguments: Any
) -> tuple[Adjoint, int]:
    """Return the derivative in λ of a step along an adjoint, and the operations that it takes."""
    with flop_counter() as counter:
        _, direct = build(*arguments, through_state=False).pull_back(adjoint)
    return direct, counter.get_total_flops()


def _some_vector(tensor: Tensor) -> Tensor:
    """Return a tensor of another's shape that no symmetry of a network leaves as it is."""
    entries = torch.linspace(-1.0, 1.0, tensor.numel() + 1, device=tensor.device)[1:]
    return entries.to(tensor.dtype).view(tensor.shape)


def _agree(one: Adjoint, other: Adjoint) -> bool:
    epsilon = max(torch.finfo(t.dtype).eps for t in [*one, *other] if t is not None)
    return norm(add_adjoints(one, scaled(other, -1.0))) <= epsilon**0.5 * norm(one)
