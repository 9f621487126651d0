"""How the functions of torch are called where a pass records or replays what is held constant."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.exchange import Again
from metatoolkit.graphs import graph_nodes
from metatoolkit.hypergradients.custom_functions import (
    check_derivative,
    is_observed,
    is_own,
    name_of,
    observed,
    points_of,
)
from metatoolkit.hypergradients.detached import DETACHING, REMEDY, Held, HeldConstants, hidden_write
from metatoolkit.hypergradients.pieces import PIECES
from metatoolkit.hypergradients.torch_calls import (
    NoHandle,
    as_tuple,
    body_of,
    checked_hook,
    has_derivatives,
    is_custom,
    other_calls,
    random_states,
    set_random_states,
    tensors_in,
)

_READERS = frozenset(
    "item tolist numpy equal allclose is_nonzero __array__ __float__ __int__ __bool__ __index__ "
    "__complex__ __contains__ __format__".split()
)
# Copies without a graph.
_CUTTING = frozenset(("tensor", "as_tensor", "new_tensor", "detach_", "histc"))
# What they return does not depend on the values they are given.
_NEUTRAL = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty "
    "new_zeros new_ones new_full".split()
)
# They end in an underscore, and write no values.
_WRITES_NOTHING = frozenset(("requires_grad_", "detach_", "share_memory_", "rename_"))
_WRITES = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ "
    "__iand__ __ior__ __ixor__".split()
)
_NO_CALL: tuple[Any, list[Any], list[Any]] = (None, [], [])
_DIFFERENTIATING = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class _Mode(Again):
    """What recording and replaying have in common."""

    def __init__(self, held: HeldConstants) -> None:
        super().__init__()
        self.held = held
        self.inside = 0
        self._open: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if func is torch.Tensor.register_hook:
            hook = checked_hook(args[1] if len(args) > 1 else kwargs["hook"])
            seen = args[0].requires_grad or self.held.everything
            return func(args[0], hook) if seen else NoHandle()
        if func not in PIECES and func not in self._open:
            body = body_of(func)
            if body is not None:
                self._open.append(func)
                try:
                    with self:
                        return body(*args, **kwargs)
                finally:
                    self._open.pop()
        name = func.__name__
        writes = "out" in kwargs or name in _WRITES
        writes |= name[-1] == "_" and name[:2] != "__" and name not in _WRITES_NOTHING
        if writes:
            for target in tensors_in([kwargs["out"]] if "out" in kwargs else args[:1]):
                self.held.before_write(target)
        return self.call(func, args, kwargs, writes)

    @abstractmethod
    def call(self, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        """Call a function of torch."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function of torch as it is; operators of others are custom functions."""
        if is_custom(func):
            return self.observe(func, args, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def observe(self, cls: Any, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Make the call of a custom function, inside which nothing is a constant."""
        points = [] if self.inside or is_own(cls) else points_of(args)
        if not points:
            return self.within(call)
        return self.function(cls, args, points, call)

    def within(self, call: Callable[[], Any]) -> Any:
        """Make a call during which the functions of torch are left alone."""
        self.inside += 1
        try:
            return call()
        finally:
            self.inside -= 1

    @abstractmethod
    def function(self, cls: Any, args: Any, points: list[Tensor], call: Callable[[], Any]) -> Any:
        """Call a custom function."""

    @abstractmethod
    def finish(self, loss: Any) -> None:
        """End a pass with what the loss returned."""


class Recording(_Mode):
    """Records what the calls of the functions of torch hold constant."""

    def call(self, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        """Call a function, and write down what it holds."""
        sources = tensors_in([*args, *kwargs.values()])
        if not self.held.everything:
            sources = [tensor for tensor in sources if tensor.requires_grad]
        if not sources or func.__name__ in _NEUTRAL:
            self.held.log.append((func, None))
            return self.run(func, args, kwargs)
        self._refuse(func, sources)
        graph = torch.is_grad_enabled()
        piece = PIECES.get(func)
        if graph and piece is not None and sources[0].is_floating_point():
            result, place = piece.find(func, args, kwargs)
            self.held.log.append((func, Held("piece", place)))
            return result
        if writes and not graph and any(t.requires_grad for t in tensors_in(args[:1])):
            raise hidden_write()
        result = self.run(func, args, kwargs)
        found = self._constants(func, result, sources, graph)
        self.held.log.append((func, found))
        self.held.differentiates |= func in _DIFFERENTIATING
        return result

    def _refuse(self, func: Any, sources: Sequence[Tensor]) -> None:
        if not self.held.everything and not any(tensor.requires_grad for tensor in sources):
            return
        if func is _SET_DATA:
            raise hidden_write()
        name = func.__name__
        if name.startswith(("fake_quantize", "fused_moving_avg_obs")):
            raise UnsupportedError(
                f"the training loss calls {name}, whose backward pass is not the derivative of "
                f"its forward pass: a difference of values cannot see it. {REMEDY}"
            )

    def _constants(
        self, func: Any, result: Any, sources: Sequence[Tensor], graph: bool
    ) -> Held | None:
        name = func.__name__
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        found = [(i, o) for i, o in enumerate(outputs) if isinstance(o, Tensor)]
        if not found:
            kinds = bool | int | float | complex | str | list | np.ndarray
            known = name in _READERS and isinstance(result, kinds)
            return Held("number", result) if known else None
        if self.held.everything:
            cutting = not graph or func in DETACHING or name in _CUTTING
            graph = any(tensor.requires_grad for tensor in sources)
            cut = [
                (i, o)
                for i, o in found
                if cutting or not has_derivatives(o) or (graph and not o.requires_grad)
            ]
            shared = sources if func in DETACHING else ()
        else:
            cut = [(i, o) for i, o in found if not o.requires_grad]
            shared = sources
        if not cut:
            self._see([o for _, o in found])
            return None
        cells = [self.held.keep(tensor, shared) for _, tensor in cut]
        return Held("tensors", cells, tuple(i for i, _ in cut))

    def _see(self, outputs: Sequence[Tensor]) -> None:
        for output in outputs:
            if output.is_floating_point():
                self.held.rounding = max(self.held.rounding, torch.finfo(output.dtype).eps)

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

    def finish(self, loss: Any) -> None:
        """Look for what was not seen.

        Args:
            loss: What the loss returned.

        Raises:
            UnsupportedError: The loss does what cannot be held.
        """
        self.held.check_versions()
        for node in graph_nodes([loss] if isinstance(loss, Tensor) else []):
            cls = getattr(type(node), "_forward_cls", None)
            if cls is not None and not is_own(cls) and not is_observed(cls):
                raise UnsupportedError(
                    f"the training loss defines {name_of(cls)} while it runs; define the class "
                    "once, outside of the loss."
                )

    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return a context that does nothing: what is run again is what was recorded."""
        return contextlib.nullcontext


class Replaying(_Mode):
    """Gives the calls of the functions of torch what was recorded.

    The calls are those of the recorded pass, one by one. What that pass did once and for all, such
    as filling a cache, may be missing here, and the calls that hold something may not.
    """

    def __init__(self, held: HeldConstants, position: int = 0) -> None:
        super().__init__(held)
        self._position = position
        self._calls = iter(held.calls if position == 0 else ())
        self._checks = position == 0 and bool(held.calls)

    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return a context that goes on from the present place."""
        position = self._position

        @contextlib.contextmanager
        def resumed() -> Iterator[None]:
            mode = Replaying(self.held, position)
            mode._checks = False
            with observed(mode.observe), mode:
                yield

        return resumed

    def _next(self, func: Any) -> Held | None:
        log = self.held.log
        place = self._position
        while place < len(log):
            known, found = log[place]
            if known == func:
                self._position = place + 1
                return found
            if found:
                break
            place += 1
        name = func.__name__
        if func in PIECES or func in DETACHING or name in _READERS or name in _CUTTING:
            raise other_calls(f"{name} is called where it was not before")
        return None

    def finish(self, loss: Any) -> None:
        """Raise unless all that was recorded has been asked for.

        Args:
            loss: What the loss returned.

        Raises:
            UnsupportedError: Something is left.
        """
        del loss
        left = [func for func, found in self.held.log[self._position :] if found]
        if left or (self._checks and next(self._calls, None) is not None):
            name = left[0].__name__ if left else "a custom function"
            raise other_calls(f"{name} was not called again")
        self.held.calls = []

    def call(self, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        """Call a function, and put what is held in the place of its results."""
        found = self._next(func)
        if found is None:
            return self.run(func, args, kwargs)
        if found.kind == "piece":
            result = PIECES[func].hold(found.value, func, args, kwargs)
            in_place = writes and result is not args[0]
            return args[0].copy_(result) if in_place else result
        result = self.run(func, args, kwargs)
        if found.kind == "number":
            return found.value
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        for i, cell in zip(found.places, found.value, strict=True):
            value = cell.tensor.detach()
            if i >= len(outputs) or outputs[i].shape != value.shape:
                raise other_calls(f"{func.__name__} returned another shape")
            if writes or func.__name__ == "detach_":
                with torch.no_grad():
                    outputs[i].copy_(value)
            else:
                outputs[i] = value
        if not isinstance(result, tuple | list):
            return outputs[0]
        named = hasattr(type(result), "_make")
        return type(result)(*outputs) if named else type(result)(outputs)

    def function(self, cls: Any, args: Any, points: list[Tensor], call: Callable[[], Any]) -> Any:
        """Call a custom function, and check its derivative the first time."""
        if not self._checks:
            return self.within(call)
        known, before, values = next(self._calls, _NO_CALL)
        if known is not cls or [c.tensor.shape for c in before] != [p.shape for p in points]:
            raise other_calls(f"{name_of(cls)} was called in the place of another function")
        random = random_states(points)
        result = self.within(call)
        after = random_states(points)

        def again(given: tuple[Any, ...]) -> Any:
            set_random_states(random)
            return (cls if is_custom(cls) else cls.apply)(*given)

        self.within(
            lambda: check_derivative(
                cls,
                again,
                args,
                [cell.tensor for cell in before],
                [cell.tensor for cell in values],
                points_of(as_tuple(result)),
            )
        )
        set_random_states(after)
        return result
