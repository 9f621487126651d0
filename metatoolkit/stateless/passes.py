"""Passes of losses with other tensors in the places of parameters, and what is watched in them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import _len_torch_function_stack
from torch.utils.weak import TensorWeakRef

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.randomness import seeded, undrawn
from metatoolkit.randomness.torch_generator import TORCH_GENERATOR
from metatoolkit.state import Tensors, describe, require_grad
from metatoolkit.stateless.asked import Asked
from metatoolkit.stateless.content import Content
from metatoolkit.stateless.exchange import Exchange, record, turn
from metatoolkit.stateless.graphs import (
    coarse_types,
    inspect_graph,
    refuse_leaves,
    watch_second_derivatives,
)
from metatoolkit.stateless.in_place import Untouched, changed_in_place
from metatoolkit.stateless.loss_values import checked_loss
from metatoolkit.stateless.places import Places

Loss = Callable[[nn.Module, nn.Module, Any], Tensor]
_DONE: tuple[TensorWeakRef, ...] = ()
_UNWATCHED: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@functools.cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


class Passes:
    """Evaluates losses over a model and a module with λ as pure functions of their tensors.

    Args:
        model: The model.
        meta: Module that holds λ; may be a part of ``model``.

    Attributes:
        places: Where the tensors of both stand.
        draws_globally: Losses that draw from the generators of Python or NumPy.
        always_seeded: Whether all generators are seeded for each pass, and not only where a loss
            was seen to draw from them.
    """

    def __init__(self, model: nn.Module, meta: nn.Module) -> None:
        self._arguments = (model, meta)
        self.places = Places(model, meta)
        self._content = Content(self._arguments)
        self._frozen = [
            name
            for name, (_, learned) in self.places.structure.items()
            if not learned and name not in self.places.buffer_names
        ]
        self.draws_globally: set[str] = set()
        self._drawing: set[str] = set()
        self.always_seeded = False
        # Losses of which something is known, by their kinds; those that are run with a graph first.
        self._differentiating: set[str] = set()
        self._trusted: set[str] = set()
        self._watched: set[str] = set()
        self._custom: set[str] = set()
        self.coarse: set[torch.dtype] = set()
        self._typed: set[str] = set()
        # Leaves of a first evaluation, until a second one is seen to reach none of them.
        self._leaves: dict[str, tuple[TensorWeakRef, ...]] = {}

    def modes(self) -> tuple[bool, ...]:
        """Return of each module whether it is in its training mode."""
        return self._content.modes()

    def live(self, name: str) -> Tensor:
        """Return the tensor of a module itself.

        Args:
            name: Name of a parameter or a buffer.
        """
        with turn():
            return self.places.tensor(name)

    def live_by_name(self, prefix: str, names: Sequence[str]) -> Tensors:
        """Return tensors of a module itself, by name.

        Args:
            prefix: What the names begin with here, ``"model."`` or ``"meta."``.
            names: Names of parameters or buffers without it.
        """
        with turn():
            return {name: self.places.tensor(prefix + name) for name in names}

    def needs_own_pass(self, kind: str) -> str | None:
        """Return why a loss cannot be mapped over several inputs by one pass, if it cannot.

        Args:
            kind: Name of a loss that was evaluated before.

        Returns:
            What the loss does, as a clause, or ``None``.
        """
        done = {
            "draws from the random generators of Python or NumPy": self.draws_globally,
            "runs custom autograd functions or hooks in its backward pass": self._custom,
            "takes gradients inside itself": self._differentiating,
        }
        return next((f"{kind} {what}" for what, kinds in done.items() if kind in kinds), None)

    def watch_second_derivatives(self, loss: Tensor, tensors: Sequence[Tensor], what: str) -> None:
        """Look at a training loss; see :meth:`BilevelProblem.watch_second_derivatives`.

        Args:
            loss: The loss with its graph.
            tensors: What the loss is differentiated in.
            what: What these are, in a word.
        """
        if what not in self._watched:
            self._watched.add(what)
            watch_second_derivatives(loss, tensors)

    def check_structure(self) -> None:
        """Raise where the modules have changed; see :meth:`BilevelProblem.check_structure`.

        The next pass of each loss is looked at anew.
        """
        self._watched.clear()
        with turn():
            same = self._content.is_present()
            present = self.places if same else Places(*self._arguments)
            content = self._content if same else Content(self._arguments)
        if not same and present.structure != self.places.structure:
            changes = self.places.changes(present)
            raise ConfigurationError(
                f"the modules have changed since the problem was made ({changes}). Make the "
                "BilevelProblem, the inner state and the trainer after the last change."
            )
        self._content = content
        hooked = content.hooked()
        if hooked is not None:
            name = next(name for name in self.places.sites if self.live(name) is hooked)
            raise ConfigurationError(
                f"the parameter {name!r} has a hook on its gradient, which neither inner "
                "steps nor hypergradients run. Remove the hook; freeze a parameter with "
                "requires_grad_(False) before the problem is made, and mask or clip a "
                "gradient in the loss or in the inner learner."
            )

    def run(
        self, loss: Loss, kind: str, tensors: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> tuple[Tensor, Tensors]:
        """Evaluate a loss, which may differentiate inside itself where nobody asks for a graph.

        Args:
            loss: The loss.
            kind: Its name.
            tensors: Parameters of both modules by name.
            buffers: Buffers by name; not modified.
            batch: Batch for the loss.
            key: Random key.

        Returns:
            The loss, a scalar, and the buffers as the pass left them.

        Raises:
            DataError: The loss is no real scalar tensor.
            UnsupportedError: The pass changes a parameter in place.
            ConfigurationError: The loss uses a parameter that was taken from a module before.
        """
        rest = (buffers, batch, key)
        if not self._needs_graph(kind, tensors):
            try:
                found = self._run_once(loss, kind, tensors, *rest)
                if kind not in self._differentiating:
                    return found
            except RuntimeError as error:
                every = torch.is_grad_enabled() and all(
                    tensor.requires_grad for tensor in tensors.values()
                )
                if every or "does not require grad" not in str(error):
                    raise
            self._differentiating.add(kind)
        with torch.enable_grad():
            value, after = self._run_once(loss, kind, require_grad(tensors), *rest)
        return (value if torch.is_grad_enabled() else value.detach()), after

    def _needs_graph(self, kind: str, tensors: Tensors) -> bool:
        """Return whether a pass is run with a graph even where nobody asks for one.

        The first pass is, since its graph tells what the loss is made of.
        """
        if kind in self._differentiating:
            return True
        first = kind not in self._trusted and not torch.is_grad_enabled()
        return first and not any(map(is_functorch_wrapped_tensor, tensors.values()))

    def _run_once(
        self, loss: Loss, kind: str, tensors: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> tuple[Tensor, Tensors]:
        versions = [tensor._version for tensor in tensors.values()]
        exchange = Exchange(self.places, tensors, buffers)
        devices = self._devices(tensors, buffers) if _has_accelerator() else ()
        # What a mode watches must not be run a second time.
        watched = self.always_seeded or _len_torch_function_stack() > 0
        seen = not watched and not devices and _len_torch_dispatch_stack() == 0
        quiet = seen and self._is_quiet(kind, key)
        python = watched or bool(self.draws_globally)
        drawing = undrawn() if quiet else seeded(key, devices, python)
        first = _UNWATCHED if kind in self._trusted else self._first(kind, tensors)
        try:
            with exchange, drawing as draws, first as asked:
                value = loss(*self._arguments, batch)
        except (RuntimeError, IndexError) as error:
            error.add_note(f"while {kind} was evaluated on a batch of: {describe(batch)}")
            raise
        if asked is not None:
            self._note(kind, asked)
        # Seeding costs a twentieth of a small base step: only losses that draw so pay for it.
        if draws.drew:
            self._drawing.add(kind)
        if draws.missed:
            self.draws_globally.add(kind)
        if draws.missed or (draws.drew and quiet):
            return self._run_once(loss, kind, tensors, buffers, batch, key)
        value = checked_loss(value, kind)
        if versions != [tensor._version for tensor in tensors.values()]:
            changed = zip(tensors.items(), versions, strict=True)
            raise UnsupportedError(
                changed_in_place(next(name for (name, t), v in changed if t._version != v))
            )
        if value.requires_grad:
            if kind not in self._typed:
                self._typed.add(kind)
                self.coarse |= coarse_types(value)
            if kind not in self._watched:
                self._watched.add(kind)
                if inspect_graph(value, kind, self.live, tensors):
                    self._custom.add(kind)
            if self._leaves.get(kind) is not _DONE:
                self._look_back(kind, value, tensors)
            if kind in self._custom:
                # The exchange keeps all its tensors alive.
                record(value, exchange)
        return value, {name: buffer.detach() for name, buffer in exchange.after.items()}

    def _devices(self, tensors: Tensors, buffers: Tensors) -> set[torch.device]:
        """Return the devices of all that a pass may read."""
        devices = {tensor.device for named in (tensors, buffers) for tensor in named.values()}
        return devices | {self.live(name).device for name in self._frozen}

    def _is_quiet(self, kind: str, key: int) -> bool:
        """Return whether a loss has been seen to draw nothing on the CPU."""
        # In its first pass it is seen. Other keys are of several tasks or calls.
        seen = kind in self._trusted and TORCH_GENERATOR.known and type(key) is int
        return seen and kind not in self._drawing and not self.draws_globally

    def _first(
        self, kind: str, tensors: Tensors
    ) -> contextlib.AbstractContextManager[Asked | None]:
        """Return what watches over the parameters in the first pass of a loss."""
        if any(map(is_functorch_wrapped_tensor, tensors.values())):
            return _UNWATCHED
        self._trusted.add(kind)
        return _watching(tensors, kind, self.live_by_name("", [*tensors]))

    def _look_back(self, kind: str, value: Tensor, tensors: Tensors) -> None:
        """Raise where the graph of a second evaluation reaches what the first one was given."""
        leaves = [tensor for tensor in tensors.values() if tensor.is_leaf and tensor.requires_grad]
        if kind not in self._leaves:
            self._leaves[kind] = tuple(map(TensorWeakRef, leaves))
            return
        # A graph that is kept keeps its leaves; of others, a new tensor may have the address.
        alive = {leaf._cdata for ref in self._leaves[kind] if (leaf := ref()) is not None}
        earlier = alive - {leaf._cdata for leaf in leaves}
        if earlier or not alive:
            refuse_leaves(value, earlier, tensors)
            self._leaves[kind] = _DONE

    def _note(self, kind: str, asked: Asked) -> None:
        """Keep what the first pass of a loss has shown."""
        if asked.requires_grad:
            self._differentiating.add(kind)
        if asked.nodes:
            self._custom.add(kind)


@contextlib.contextmanager
def _watching(tensors: Tensors, kind: str, live: Tensors) -> Iterator[Asked]:
    asked = Asked(tensors)
    with Untouched(tensors, kind, live), asked:
        yield asked
