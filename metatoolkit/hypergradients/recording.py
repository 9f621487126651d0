"""The pass that records what a derivative holds constant, call by call of torch's functions."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.custom_functions import is_observed, is_own, name_of, points_of
from metatoolkit.hypergradients.detached import (
    DETACHING,
    REMEDY,
    Held,
    HeldConstants,
    hidden_write,
    place_of,
)
from metatoolkit.hypergradients.holding import CUTTING, READERS, SET_DATA, HoldingMode, with_mode
from metatoolkit.hypergradients.kinks import PIECES
from metatoolkit.hypergradients.torch_calls import as_tuple, has_derivatives, tensors_in
from metatoolkit.hypergradients.transforms import requires_gradient, taken_out
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.graphs import graph_nodes

# What they return does not depend on the values they are given.
_NEUTRAL = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty "
    "new_zeros new_ones new_full".split()
)
_DIFFERENTIATING = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)


class Recording(HoldingMode):
    """Records what the calls of the functions of torch hold constant."""

    def __init__(self, held: HeldConstants) -> None:
        super().__init__(held)
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        # Where nothing tells by a gradient: what was computed from parameters, by identity.
        self._followers: dict[int, weakref.ref[Tensor]] = {}
        self._parameters: frozenset[int] | None = None
        # What was made of nothing, or is held.
        self._made: dict[int, weakref.ref[Tensor]] = {}

    @override
    def call(self, func: Any, args: Any, kwargs: Any, targets: list[Tensor]) -> Any:
        """Call a function, and write down what it holds."""
        if func is torch.Tensor.numpy:
            return self._numpy(args[0], func(*args, **kwargs), kwargs.get("force", False))
        sources = tensors_in([*args, *kwargs.values()])
        if not self.held.everything:
            sources = [tensor for tensor in sources if requires_gradient(tensor)]
        if not sources or func.__name__ in _NEUTRAL:
            self.held.log.append((func, None))
            result = self.run(func, args, kwargs)
            self._remember(as_tuple(result))
            return result
        self._refuse(func, args, sources)
        graph = torch.is_grad_enabled()
        piece = PIECES.get(func)
        if graph and piece is not None and sources[0].is_floating_point():
            result, place = piece.find(func, args, kwargs)
            self.held.log.append((func, Held("piece", taken_out(place))))
            self._mark(sources, [result])
            return result
        if not graph and any(requires_gradient(t) or self._follows(t) for t in targets):
            raise hidden_write()
        result = self.run(func, args, kwargs)
        # What assigns to entries returns nothing.
        outcome = targets if targets and result is None else result
        found = self._constants(func, outcome, sources, graph, bool(targets))
        self.held.log.append((func, found))
        self.held.differentiates |= func in _DIFFERENTIATING
        return result

    def _refuse(self, func: Any, args: Any, sources: Sequence[Tensor]) -> None:
        if not self.held.everything and not any(map(requires_gradient, sources)):
            return
        if func == SET_DATA and (requires_gradient(args[0]) or self._may_follow(args[0])):
            raise hidden_write()
        name = func.__name__
        if name.startswith(("fake_quantize", "fused_moving_avg_obs")):
            raise UnsupportedError(
                f"the training loss calls {name}, whose backward pass is not the derivative of "
                f"its forward pass: a difference of values cannot see it. {REMEDY}"
            )

    def _may_follow(self, tensor: Tensor) -> bool:
        """Return whether a tensor without a graph may depend on what is shifted all the same."""
        known = (buffer for module in self.modules for buffer in module.buffers())
        return self.held.everything and not any(tensor is buffer for buffer in known)

    def _follows(self, tensor: Tensor) -> bool:
        """Return whether a tensor was computed from inner parameters that require no gradient."""
        if self._parameters is None:
            every = (p for module in self.modules for p in module.parameters())
            self._parameters = frozenset(map(id, every)) if self.held.everything else frozenset()
        follower = self._followers.get(id(tensor))
        return id(tensor) in self._parameters or (follower is not None and follower() is tensor)

    def _is_same(self, tensor: Tensor) -> bool:
        """Return whether a tensor is known to be the same in all passes."""
        made = self._made.get(id(tensor))
        known = (made is not None and made() is tensor) or not self._may_follow(tensor)
        return known and not self._follows(tensor)

    def _remember(self, results: Sequence[Any]) -> None:
        """Note that results are the same in all passes."""
        if self.held.everything:
            tensors = [result for result in results if isinstance(result, Tensor)]
            self._made |= {id(tensor): weakref.ref(tensor) for tensor in tensors}

    def _mark(self, sources: Sequence[Tensor], results: Sequence[Any]) -> None:
        """Note that results follow what sources follow."""
        if self.held.everything and any(map(self._follows, sources)):
            for result in results:
                if isinstance(result, Tensor):
                    self._followers[id(result)] = weakref.ref(result)

    def _constants(
        self, func: Any, result: Any, sources: Sequence[Tensor], graph: bool, writes: bool
    ) -> Held | None:
        name = func.__name__
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        found = [(i, o) for i, o in enumerate(outputs) if isinstance(o, Tensor)]
        if not found:
            kinds = bool | int | float | complex | str | list | np.ndarray
            known = name in READERS and isinstance(result, kinds)
            return Held("number", copy.deepcopy(result)) if known else None
        if self.held.everything:
            cutting = not graph or func in DETACHING or name in CUTTING
            graph = any(map(requires_gradient, sources))
            cut = [
                (i, o)
                for i, o in found
                if cutting or not has_derivatives(o) or (graph and not requires_gradient(o))
            ]
            if not torch.is_grad_enabled() and not writes:
                # A view goes on to be one, of what is the same in all passes.
                same = {place_of(t) for t in sources if self._is_same(t)} - {None}
                views = [(i, o) for i, o in cut if place_of(o) in same]
                cut = [(i, o) for i, o in cut if place_of(o) not in same]
                self._remember([o for _, o in views])
            self._remember([o for _, o in cut])
            shared = sources if cutting and not writes else ()
            self._mark(sources, [o for i, o in found if not any(i == j for j, _ in cut)])
        else:
            # A view that is taken while no gradients are recorded says that it requires one.
            cut = [(i, o) for i, o in found if not (graph and requires_gradient(o))]
            shared = sources
        if not cut:
            self._see([o for _, o in found])
            return None
        cells = [self.held.keep(tensor, shared) for _, tensor in cut]
        return Held("tensors", cells, tuple(i for i, _ in cut))

    def _numpy(self, tensor: Tensor, array: np.ndarray, force: bool) -> np.ndarray:
        """Write down an array, which may be written over unseen."""
        follows = tensor.requires_grad or (force and self.held.everything)
        shared = follows or self.held.shares_memory(tensor)
        holds = tensor.requires_grad or self.held.everything
        value = array.copy() if shared or holds else array
        if shared:
            self._arrays.append((array, value))
        found = Held("number", value) if holds else None
        self.held.log.append((torch.Tensor.numpy, found))
        return array

    def _see(self, outputs: Sequence[Tensor]) -> None:
        for output in outputs:
            if output.is_floating_point():
                self.held.rounding = max(self.held.rounding, torch.finfo(output.dtype).eps)

    @override
    def function(self, cls: Any, args: Any, points: list[Tensor], call: Callable[[], Any]) -> Any:
        """Call a custom function, and keep arguments and results."""
        before = self.within(lambda: [self.held.keep(point) for point in points])
        result = self.within(call)
        pairs = zip(before, points, strict=True)
        if any(cell.version not in (None, point._version) for cell, point in pairs):
            raise UnsupportedError(
                f"{name_of(cls)} writes over its arguments, so that its derivative cannot be "
                f"checked, as a difference of values asks for. {REMEDY}"
            )
        values = self.within(lambda: [self.held.keep(p) for p in points_of(as_tuple(result))])
        self.held.calls.append((cls, before, values))
        return result

    @override
    def finish(self, loss: Any) -> None:
        """Look for what was not seen.

        Args:
            loss: What the loss returned.

        Raises:
            UnsupportedError: The loss does what cannot be held.
        """
        self.held.check_versions()
        if any(array.tobytes() != value.tobytes() for array, value in self._arrays):
            raise hidden_write()
        for node in graph_nodes([loss] if isinstance(loss, Tensor) else []):
            cls = getattr(type(node), "_forward_cls", None)
            if cls is not None and not is_own(cls) and not is_observed(cls):
                raise UnsupportedError(
                    f"the training loss defines {name_of(cls)} while it runs; define the class "
                    "once, outside of the loss."
                )

    @override
    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return a context that does nothing: what is run again is what was recorded."""
        return contextlib.nullcontext


def recording(problem: BilevelProblem, held: HeldConstants) -> BilevelProblem:
    """Return a problem whose training loss records what it holds constant, in each call anew.

    Args:
        problem: The problem.
        held: Takes what is recorded.
    """

    def start() -> Recording:
        held.clear()
        return Recording(held)

    return with_mode(problem, start)
