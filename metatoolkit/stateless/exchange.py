"""Other tensors in the places of a module's own, in a pass and in whatever runs it again later."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import checkpoint as torch_checkpoint

from metatoolkit.errors import UnsupportedError
from metatoolkit.state import Tensors
from metatoolkit.stateless.places import Place, Places

_REENTRANT = (
    "the model uses reentrant activation checkpointing, whose backward pass cannot be taken by "
    "torch.autograd.grad, as every hypergradient needs. Pass use_reentrant=False to "
    "torch.utils.checkpoint.checkpoint; for Hugging Face models "
    "model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
)


class _Active(threading.local):
    """The exchanges that hold on this thread, outermost first, and what else is of a thread."""

    def __init__(self) -> None:
        self.stack: list[Exchange] = []
        self.saving: Callable[..., Any] | None = None
        # A thread of the autograd engine, which threading did not start, works for one that waits.
        self.works_for_another = isinstance(threading.current_thread(), threading._DummyThread)


_active = _Active()
_NO_TURN: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_lock = threading.RLock()
"""Modules that are exchanged, their modes and the random state are for one thread at a time."""


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Again(TorchFunctionMode, ABC):
    """A mode of a pass that holds for what is run again of it, too."""

    @abstractmethod
    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return what makes the mode for a pass that begins where this one is by now."""


def turn() -> contextlib.AbstractContextManager[object]:
    """Return a context in which no other thread evaluates a problem."""
    return _NO_TURN if _active.works_for_another else _lock


class Exchange:
    """Tensors that stand in the places of parameters and buffers while a function runs.

    A context manager. It holds for a pass, again for each backward pass over the graph that the
    pass left (:func:`within`), and for what runs a part of the pass once more during a backward
    pass, such as activation checkpointing, wherever that is taken (:meth:`again`). Buffers enter
    as copies, so that what is run again moves none of them a second time. Exchanges of different
    threads follow one another.

    Args:
        modules: Where each tensor stands.
        tensors: What to put there, by name.
        buffers: Buffers, likewise; not modified.

    Attributes:
        after: The buffers as the body left them.
        differentiable: Whether gradients were recorded when the body began.

    Raises:
        UnsupportedError: The body has filled a buffer that was ``None``.
    """

    def __init__(self, modules: Places, tensors: Tensors, buffers: Tensors) -> None:
        self.modules = modules
        self.tensors = tensors
        self.buffers = buffers
        self.after: Tensors = {}
        self.differentiable = False
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> Exchange:
        self._turn = turn()
        self._turn.__enter__()
        _active.stack.append(self)
        try:
            self._put()
        except BaseException as error:
            self.after = {}
            self.__exit__(type(error))
            raise
        return self

    def _put(self) -> None:
        modules, before = self.modules, self._before
        self.differentiable = torch.is_grad_enabled()
        if self.buffers:
            self.after = {name: buffer.clone() for name, buffer in self.buffers.items()}
        self._versions = [copy._version for copy in self.after.values()]
        for store, key in modules.computed:
            before.append((store, key, store[key]))
        for tensors in (self.tensors, self.after):
            for name, tensor in tensors.items():
                for store, key in modules.sites[name]:
                    before.append((store, key, store[key]))
                    store[key] = tensor
        if modules.recurrent:
            self._refresh_recurrent()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        filled: list[Place] = []
        modules = self.modules
        for name in self.after:
            self.after[name] = modules.tensor(name)
        for store, key, tensor in reversed(self._before):
            store[key] = tensor
        self._before.clear()
        for store, key in modules.empty:
            if store[key] is not None:
                filled.append((store, key))
                store[key] = None
        if modules.recurrent:
            self._refresh_recurrent()
        _active.stack.pop()
        self._turn.__exit__(None, None, None)
        if filled and kind is None:
            raise UnsupportedError(
                f"a pass fills {modules.name(filled[0])!r}, which is None in the module, so that "
                "it would be lost with the pass. Fill it before the problem is made, for instance "
                "by one forward pass of the model."
            )

    def _refresh_recurrent(self) -> None:
        """Recurrent modules read their weights from a list of their own."""
        for module in self.modules.recurrent:
            module._flat_weights = [
                getattr(module, name, None) for name in module._flat_weights_names
            ]

    def again(self) -> Exchange:
        """Return an exchange of the same tensors, with the buffers as they were at the start."""
        return Exchange(self.modules, self.tensors, self.buffers)

    def at_present(self) -> Exchange:
        """Return an exchange of the same tensors, with the buffers as they are by now."""
        buffers = {}
        for (name, copy), version in zip(self.after.items(), self._versions, strict=True):
            present = self.modules.tensor(name)
            same = present is copy and present._version == version
            buffers[name] = self.buffers[name] if same else present.detach().clone()
        return Exchange(self.modules, self.tensors, buffers)


def _replayed(hook: Callable[[Any], Any], recomputes: bool) -> Callable[[Any], Any]:
    """Return a hook that runs under the exchanges of this moment.

    Args:
        hook: The hook, which may run a part of the pass again or read parameters.
        recomputes: Whether it is of the first kind, for which the modes of the pass hold, too.
    """
    present = [exchange.at_present() for exchange in _active.stack]
    stack = _get_current_function_mode_stack() if recomputes else []
    modes = [mode.again() for mode in stack if isinstance(mode, Again)]

    def replayed(packed: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            for exchange in present:
                stack.enter_context(exchange.again())
            return hook(packed)

    return replayed


def record(loss: Tensor, exchange: Exchange) -> None:
    """Keep with a loss the exchange that its backward passes need.

    Args:
        loss: Result of a pass.
        exchange: Exchange that held in the pass.
    """
    loss._metatoolkit_exchange = exchange  # type: ignore[attr-defined]


def is_recorded(loss: Tensor) -> bool:
    """Return whether backward passes over the graph of a loss need an exchange.

    Args:
        loss: Loss that a problem evaluated.
    """
    return hasattr(loss, "_metatoolkit_exchange")


def carry(loss: Tensor, total: Tensor) -> None:
    """Let a tensor that was computed from a loss be differentiated as the loss would be.

    Args:
        loss: Loss that a problem evaluated.
        total: Tensor that was computed from it and from losses at the same point.
    """
    recorded: Exchange | None = getattr(loss, "_metatoolkit_exchange", None)
    if recorded is not None:
        record(total, recorded)


class within:
    """Run the body, a backward pass over the graph of a loss, as the pass was run.

    Args:
        loss: Loss that a problem evaluated; any other tensor changes nothing.

    Raises:
        UnsupportedError: The backward pass adds to the ``.grad`` fields of the parameters.
    """

    def __init__(self, loss: Tensor) -> None:
        recorded: Exchange | None = getattr(loss, "_metatoolkit_exchange", None)
        self._exchange = None if recorded is None else recorded.again()

    def __enter__(self) -> None:
        if self._exchange is not None:
            self._leaves = [t for t in self._exchange.tensors.values() if t.is_leaf]
            self._before = [tensor.grad for tensor in self._leaves]
            for tensor in self._leaves:
                tensor.grad = None
            self._exchange.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._exchange is None:
            return
        self._exchange.__exit__(kind, error, traceback)
        added = any(tensor.grad is not None for tensor in self._leaves)
        for tensor, grad in zip(self._leaves, self._before, strict=True):
            tensor.grad = grad
        if added:
            raise UnsupportedError(
                "a custom autograd.Function of the model calls backward() in its own backward "
                "pass, so that gradients reach the .grad fields and not the hypergradient. Let it "
                "return them, by torch.autograd.grad, or use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            ) from error


@contextlib.contextmanager
def saved_by(wrap: Callable[..., Any]) -> Iterator[None]:
    """Put other hooks in the place of those that an evaluation sets for saved tensors.

    Args:
        wrap: Takes the hooks that pack and unpack, and returns those that take their places.

    Yields:
        Nothing.
    """
    former, _active.saving = _active.saving, wrap
    try:
        yield
    finally:
        _active.saving = former


def _install() -> None:
    """Let hooks, reentrant checkpoints and the class of parameters ask for the exchange.

    A hook that runs a part of the pass again, as non-reentrant checkpointing does, or reads
    parameters, is called when the exchange has ended, from whichever backward pass needs it first.
    Outside of an exchange all of these are PyTorch's.
    """
    enter = saved_tensors_hooks.__enter__
    check = torch_checkpoint.check_backward_validity
    register = Tensor.register_hook
    is_instance = type(nn.Parameter).__instancecheck__

    def enter_replayed(self: saved_tensors_hooks) -> None:
        if not _active.stack:
            enter(self)
            return
        hooks = self.pack_hook, self.unpack_hook
        self.pack_hook, unpack = hooks if _active.saving is None else _active.saving(*hooks)
        self.unpack_hook = _replayed(unpack, True)
        try:
            enter(self)
        finally:
            self.pack_hook, self.unpack_hook = hooks

    def check_reentrant(inputs: Any) -> None:
        if any(exchange.differentiable for exchange in _active.stack):
            raise UnsupportedError(_REENTRANT)
        check(inputs)

    @functools.wraps(register)
    def register_replayed(self: Tensor, hook: Callable[[Tensor], Any]) -> Any:
        return register(self, _replayed(hook, False) if _active.stack else hook)

    def is_parameter(cls: Any, instance: Any) -> bool:
        """Return whether a tensor is a parameter, or stands in the place of one."""
        if is_instance(cls, instance):
            return True
        if not _active.stack or cls is not nn.Parameter or not isinstance(instance, Tensor):
            return False
        # Code of torch registers parameters so, which what is exchanged must not be.
        if sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            return False
        return any(instance is t for one in _active.stack for t in one.tensors.values())

    saved_tensors_hooks.__enter__ = enter_replayed  # type: ignore[method-assign]
    torch_checkpoint.check_backward_validity = check_reentrant
    Tensor.register_hook = register_replayed  # type: ignore[method-assign]
    type(nn.Parameter).__instancecheck__ = is_parameter  # type: ignore[method-assign]


_install()
