"""What the modes have in common in which a pass records or replays what is held constant."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.backward_hooks import CheckedNode, checked_hook, lossless
from metatoolkit.hypergradients.composed import COMPOSED
from metatoolkit.hypergradients.custom_functions import is_own, observed, points_of
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.kinks import PIECES
from metatoolkit.hypergradients.torch_calls import (
    METADATA,
    NoHandle,
    as_tuple,
    body_of,
    is_custom,
    tensors_in,
)
from metatoolkit.hypergradients.transforms import requires_gradient
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.asked import NODE, asker
from metatoolkit.stateless.exchange import Again

READERS = frozenset(
    "item tolist numpy equal allclose is_nonzero __array__ __float__ __int__ __bool__ __index__ "
    "__complex__ __contains__ __format__".split()
)
"""Functions that return numbers read from tensors."""
CUTTING = frozenset(("tensor", "as_tensor", "new_tensor", "detach_", "histc"))
"""Functions that copy without a graph."""
SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
"""The function by which a tensor is given the memory of another one."""
# They end in an underscore, and write no values.
_WRITES_NOTHING = frozenset(("requires_grad_", "detach_", "share_memory_", "rename_"))
_WRITES = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ "
    "__iand__ __ior__ __ixor__".split()
)
# They give memory away, which may be written over unseen.
_EXPOSING = frozenset("numpy data_ptr untyped_storage __dlpack__".split())
# Dynamo, under which a loss may run, looks through functools.cache and warns.
_plain: dict[Any, bool] = {}


def _is_plain(func: Any) -> bool:
    """Return whether all that a call of a function does is to return what it has computed."""
    if func not in _plain:
        name = func.__name__
        special = func in (NODE, SET_DATA, torch.Tensor.view_as, torch.Tensor.register_hook)
        opened = func in COMPOSED or (func not in PIECES and body_of(func) is not None)
        exposing = name in _EXPOSING or isinstance(func, torch._ops.OpOverload)
        _plain[func] = not (special or opened or exposing or _writes(name))
    return _plain[func]


def _writes(name: str) -> bool:
    """Return whether a function of this name writes over its first argument."""
    in_place = name[-1] == "_" and name[:2] != "__" and name not in _WRITES_NOTHING
    return in_place or name in _WRITES


class HoldingMode(Again):
    """What recording and replaying have in common.

    Attributes:
        repeats: Whether it makes the calls of an earlier pass again, and no others.
    """

    repeats: ClassVar[bool] = False

    def __init__(self, held: HeldConstants) -> None:
        super().__init__()
        self.held = held
        self.modules: tuple[nn.Module, ...] = ()
        self.inside = 0
        self._open: list[Any] = []
        self._handed: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA or self.inside:
            return func(*args, **kwargs)
        if _is_plain(func):
            return self._call(func, args, kwargs, [kwargs["out"]] if "out" in kwargs else ())
        # Modes below autograd call the operators of torch, of whose functions they are a part.
        below = isinstance(func, torch._ops.OpOverload) and not is_custom(func)
        handed = func is torch.Tensor.view_as and self._hands_through(args)
        if below or handed:
            return func(*args, **kwargs)
        if func is torch.Tensor.register_hook:
            hook = checked_hook(args[1] if len(args) > 1 else kwargs["hook"])
            seen = requires_gradient(args[0]) or self.held.everything
            return func(args[0], hook) if seen else NoHandle()
        if func == NODE:
            node = func(*args, **kwargs)
            return CheckedNode(node) if node is not None and _may_hook(asker()) else node
        if func not in self._open:
            body = COMPOSED.get(func)
            if body is None and func not in PIECES:
                body = body_of(func)
            if body is not None:
                self._open.append(func)
                try:
                    with self:
                        return body(*args, **kwargs)
                finally:
                    self._open.pop()
        if func == SET_DATA:
            args = (args[0], self.call(torch.Tensor.detach, (args[1],), {}, []))
        name = func.__name__
        if name in _EXPOSING:
            self.held.save(args[0])
        given = [kwargs["out"]] if "out" in kwargs else args[:1] if _writes(name) else ()
        return self._call(func, args, kwargs, given)

    def _call(self, func: Callable[..., Any], args: Any, kwargs: Any, given: Sequence[Any]) -> Any:
        targets = tensors_in(given)
        for target in targets:
            self.held.before_write(target)
        return self.call(func, args, kwargs, targets)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Return what looks at hooks for saved tensors while a loss runs."""
        return lossless()

    @abstractmethod
    def call(self, func: Any, args: Any, kwargs: Any, targets: list[Tensor]) -> Any:
        """Call a function of torch, with the tensors that it writes over."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function of torch as it is; operators of others are custom functions."""
        if is_custom(func):
            return self.observe(func, args, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def observe(self, cls: Any, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Make the call of a custom function, inside which nothing is a constant."""
        points = [] if self.inside or is_own(cls) else points_of(args)
        result = self.function(cls, args, points, call) if points else self.within(call)
        if not self.inside:
            self._handed = [r for r in as_tuple(result) if any(r is point for point in points)]
        return result

    def _hands_through(self, args: Sequence[Any]) -> bool:
        """Return whether autograd makes a view, for a custom function that returns its argument.

        It has no gradient yet, like a view that a loss makes under ``no_grad``, and gets one.
        """
        if torch.is_grad_enabled() or args[0] is not args[-1] or len(args) != 2:
            return False
        asker = sys._getframe(2).f_globals.get("__name__", "")
        return asker.startswith("torch.") or any(args[0] is handed for handed in self._handed)

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


def _may_hook(module: str) -> bool:
    """Return whether a module that asks for a node may set hooks on it that change gradients.

    Functions of torch hand nodes to its engine, but for those that call the hooks of modules.
    """
    return module == "torch.utils.hooks" or module.split(".")[0] != "torch"


def with_mode(problem: BilevelProblem, start: Callable[[], HoldingMode]) -> BilevelProblem:
    """Return a problem whose training loss is evaluated under a mode.

    Args:
        problem: The problem.
        start: Returns the mode of an evaluation.
    """
    if "train_loss" in problem.micro_batched.sizes:
        raise UnsupportedError(
            "this estimator holds what one pass over a batch has computed, and micro_batch takes "
            "several. Leave micro_batch out, or use Unrolled, OneStep or Implicit."
        )
    loss = problem.train_loss

    def under_mode(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
        mode = start()
        mode.modules = (model, meta)
        seen = observed(mode.observe, known=mode.repeats)
        with warnings.catch_warnings(), seen, mode.saving():
            # Dynamo looks at all attributes of the tensors that it is given.
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf"
            )
            with mode:
                value = loss(model, meta, batch)
            # What is looked at here is no question of the loss.
            with torch._C.DisableTorchFunction():
                mode.finish(value)
        return value

    def watch(_: BilevelProblem, *seen: Any) -> None:
        # An evaluation is repeated as it is, under no mode.
        if problem.watch is not None:
            problem.watch(problem, *seen)

    changed = copy.copy(problem)
    changed.train_loss = under_mode
    changed.watch = watch
    return changed
