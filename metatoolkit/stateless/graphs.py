"""What the graph of a loss tells: tensors it must not reach, functions that cut derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import ConfigurationError, ReplayError, UnsupportedError
from metatoolkit.state import describe

FIRST_ORDER = "FiniteDifference, SAMA, EvoGrad, FirstOrder or EvolutionStrategies"
"""Estimators that take first derivatives only, for messages."""

_WEIGHT_NORM = "WeightNormInterfaceBackward"
_Leaf = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)
"""The class of the nodes at which gradients end."""
_SHARED = "CppFunction"
"""Name of the class that nodes without one of their own share."""
_plain: set[type] = set()
"""Classes of nodes of one operator each, at which there is nothing to see."""


def refuse_inference_mode() -> None:
    """Raise under ``torch.inference_mode``, where no gradient can be recorded.

    Raises:
        UnsupportedError: It is on.
    """
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "torch.inference_mode() is on, in which no gradient is recorded, not even under "
            "torch.enable_grad(). Leave it, or use torch.no_grad() around what needs no gradient."
        )


def taken_outside(kind: str, name: str) -> str:
    """Return the message for a loss that uses a tensor of a module itself.

    Args:
        kind: Name of the loss.
        name: Name of the parameter.
    """
    return (
        f"{kind} uses the parameter {name!r} as a tensor that was taken from the module "
        "outside of the loss, which inner steps do not move and no derivative reaches. Take "
        "it from the modules that the loss is called with: write "
        f"{name!r} as an attribute of the argument, or list(model.parameters()) inside the "
        "loss; or a copy, .detach().clone(), where its value at the start is meant."
    )


def unreached_error(batch: Any) -> UnsupportedError:
    """Return the error for a training loss whose graph reaches no inner parameter.

    Args:
        batch: The training batch.
    """
    return UnsupportedError(
        "train_loss has no gradient in any inner parameter, so that a step would move nothing "
        f"(batch of: {describe(batch)}). Compute it from the outputs of the model that the loss "
        "is called with, without detach(), .item(), .data, NumPy or torch.no_grad() on the way."
    )


def nodes_of(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the nodes of a graph that computed tensors, where there are any.

    Args:
        tensors: The tensors.
    """
    return [node for tensor in tensors if (node := tensor.grad_fn) is not None]


def graph_nodes(
    outputs: Sequence[Tensor], boundary: Collection[Any] = ()
) -> Iterator[torch.autograd.graph.Node]:
    """Yield the nodes of a graph, each once.

    Args:
        outputs: Tensors whose graphs are walked; those without one are passed over.
        boundary: Nodes that are not followed any further.

    Yields:
        The nodes, those of the boundary included.
    """
    ends = set(boundary)
    stack = [*dict.fromkeys(nodes_of(outputs))]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        if node not in ends:
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    stack.append(child)


def coarse_types(loss: Tensor) -> set[torch.dtype]:
    """Return the types of less than float32 in which a gradient flows through a graph.

    Args:
        loss: The loss with its graph.
    """
    nodes: Iterator[Any] = graph_nodes([loss])
    found = {entry.dtype for node in nodes for entry in node._input_metadata}
    return found & {torch.float16, torch.bfloat16}


def inspect_graph(
    loss: Tensor, kind: str, live: Callable[[str], Tensor | None], given: Mapping[str, Tensor]
) -> bool:
    """Look at what the graph of a loss ends at, and at what it is made of.

    An evaluation puts other tensors in the places of parameters, so that one that was taken from
    a module before (a list of parameters, a penalty on them) is not what is trained.

    Args:
        loss: The loss with its graph.
        kind: Name of the loss.
        live: Returns the tensor of a module itself, by its name.
        given: Tensors that the evaluation put in their places, which may be these themselves,
            by name.

    Returns:
        Whether there is a custom ``autograd.Function``, whose backward pass may run anything.

    Raises:
        ConfigurationError: The graph ends at a parameter of the modules themselves.
    """
    custom = special = False
    accepted = {id(tensor) for tensor in given.values()}
    for node in graph_nodes([loss], nodes_of(given.values())):
        own = type(node)
        if own in _plain:
            continue
        if _is_custom(node):
            custom = True
        elif own is _Leaf:
            variable = node.variable  # type: ignore[attr-defined]
            if id(variable) not in accepted:
                name = next((name for name in given if live(name) is variable), None)
                if name is not None:
                    raise ConfigurationError(taken_outside(kind, name))
        elif _is_weight_norm(node):
            special = True
        elif own.__name__ != _SHARED:
            _plain.add(own)
    if not (custom or special):
        loss._metatoolkit_plain = True  # type: ignore[attr-defined]
    return custom


def kept_graph_error() -> ReplayError:
    """Return the error for a loss that reaches the graph of an earlier evaluation."""
    return ReplayError(
        "an evaluation of a loss reaches the graph of another one, through a tensor that is "
        "kept from it: a hidden state, a cache or a moving average that is no buffer, or a "
        "variable that the loss closes over. Keep it with register_buffer, which every evaluation "
        "begins anew with, or pass it in the batch."
    )


def refuse_leaves(loss: Tensor, leaves: Collection[int], given: Mapping[str, Tensor]) -> None:
    """Raise where the graph of a loss ends at tensors that an earlier evaluation was given.

    Args:
        loss: The loss with its graph.
        leaves: Addresses of those tensors, ``_cdata``.
        given: Tensors that this evaluation was given, beyond which nothing is followed; by name.

    Raises:
        ReplayError: It does.
    """
    for node in graph_nodes([loss], nodes_of(given.values())):
        if type(node) is _Leaf and node.variable._cdata in leaves:  # type: ignore[attr-defined]
            raise kept_graph_error()


def watch_second_derivatives(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Look for functions between a loss and tensors that cut second derivatives.

    To be called before the gradient in these tensors is taken with a graph of its own. A custom
    ``autograd.Function`` is watched in that pass: where its ``backward`` returns tensors without
    a graph although they depend on what it was given, the second derivative would lack a term.

    Args:
        loss: The training loss with its graph.
        parameters: The tensors, as the evaluation was given them.

    Raises:
        UnsupportedError: A function between the two is once differentiable; or, in the pass that
            follows, a custom one that cuts its second derivative.
    """
    if hasattr(loss, "_metatoolkit_plain"):
        return
    ends = {id(tensor) for tensor in parameters if tensor.grad_fn is None}
    boundary = nodes_of(parameters)
    for node in graph_nodes([loss], boundary):
        custom = _is_custom(node)
        if not custom and not _is_weight_norm(node):
            continue
        # What computed a given tensor lies before it.
        if node in boundary or not _leads_to(node, ends, boundary):
            continue
        if not custom:
            warnings.warn(
                "PyTorch's second derivative of weight_norm is wrong, and with it the "
                "hypergradient. Write the normalized weight out in the module "
                "(g * v / v.norm()), or use an estimator with first derivatives only: "
                f"{FIRST_ORDER}.",
                stacklevel=2,
            )
        elif _is_once_differentiable(node):
            raise UnsupportedError(_cut(node, "is marked once_differentiable"))
        elif type(node)._forward_cls.__module__.split(".")[0] != "torch":  # type: ignore[attr-defined]
            node.register_hook(_watch(node))


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction)


def _is_weight_norm(node: Any) -> bool:
    own = type(node).__name__
    name = node.name() if own == _SHARED else own
    return name.startswith(_WEIGHT_NORM)


def _leads_to(node: Any, ends: Collection[int], boundary: Sequence[Any]) -> bool:
    for upstream in graph_nodes([_Output(node)], boundary):  # type: ignore[list-item]
        if upstream in boundary or id(getattr(upstream, "variable", None)) in ends:
            return True
    return False


class _Output:
    """Stands for an output of a node."""

    def __init__(self, node: Any) -> None:
        self.grad_fn = node


def _is_once_differentiable(node: Any) -> bool:
    function = type(node)._forward_cls.backward
    while function is not None:
        if getattr(function, "__code__", None) is _ONCE:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


_ONCE = once_differentiable(lambda ctx: None).__code__
"""The code that the decorator puts around a backward pass, whichever it is."""


def _watch(node: Any) -> Callable[[Any, Any], None]:
    edges = [child is not None for child, _ in node.next_functions]

    def check(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
        if not torch.is_grad_enabled():
            return
        found = [g for g, edge in zip(inputs, edges, strict=False) if edge and g is not None]
        constant = [gradient for gradient in found if not gradient.requires_grad]
        if any(g is not None and g.requires_grad for g in outputs):
            # Whatever is linear in what arrives has a graph, unless it is zero.
            cut = any(bool(gradient.any()) for gradient in constant)
        else:
            cut = bool(constant) and len(constant) == len(found) and _reads(node)
        if cut:
            raise UnsupportedError(_cut(node, "has a backward pass without a graph"))

    return check


def _reads(node: Any) -> bool:
    """Return whether a backward pass may read what depends on the inputs."""
    if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in node.saved_tensors):
        return True
    constant = int | float | complex | str | torch.Size | torch.dtype | torch.device | None
    kept = (leaf for value in vars(node).values() for leaf in tree_leaves(value))
    return any(not isinstance(leaf, constant) for leaf in kept)


def _cut(node: Any, why: str) -> str:
    name = type(node)._forward_cls.__qualname__
    return (
        f"the function {name} {why}, so that a second derivative of train_loss would lack its "
        "part without a word. Write its backward pass with differentiable operations, or use an "
        f"estimator with first derivatives only: {FIRST_ORDER}."
    )
