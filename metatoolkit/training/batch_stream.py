"""Batches for a training loop, which may start over and resume where they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import DataError
from metatoolkit.randomness import Place, go_to_portable, has_moved, place, portable


@runtime_checkable
class Stateful(Protocol):
    """What can be stored in a checkpoint by itself: data iterators, optimizers, estimators."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state_dict: What :meth:`state_dict` returned.
        """
        ...


class BatchStream:
    """An endless iterator over batches that knows how to go back to where it was.

    Batches that keep no state of their own are drawn again from the beginning of their epoch, with
    the global generators of torch, Python and NumPy where they were then.

    Args:
        name: The argument that the batches came in, for messages.
        batches: Batches; an iterable that is exhausted starts over.
    """

    def __init__(self, name: str, batches: Iterable[Any]) -> None:
        self.name = name
        self.batches = batches
        self.taken = 0
        self._last: list[tuple[Any, int]] = []
        # What is looked up draws nothing.
        self._looked_up = isinstance(batches, list | tuple)
        self._draws_globally = False
        self._begin()

    def _begin(self) -> None:
        """Begin an epoch; what draws its order may do so now, or with the first batch."""
        before = None if self._looked_up else place()
        self._epoch: dict[str, Any] = {"taken": self.taken, "begin": before}
        self.iterator: Iterator[Any] = iter(self.batches)
        self._notice(before)

    def _notice(self, before: Place | None) -> None:
        """Notice whether a global generator was drawn from."""
        if before is not None and not self._draws_globally:
            self._draws_globally = has_moved(before)

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: There is none, and the batches cannot start over.
        """
        before = None if self._looked_up or self._draws_globally else place()
        try:
            batch = self._advance()
        except StopIteration:
            self._begin()
            try:
                batch = self._advance()
            except StopIteration:
                remedy = (
                    "it holds no batch"
                    if self.taken == 0
                    else "it is exhausted and cannot start again; pass a list, a DataLoader or an "
                    "endless iterator"
                )
                raise DataError(f"{self.name}: {remedy}.") from None
        self._notice(before)
        self.taken += 1
        # Memory of a GPU is not held for it.
        self._last = [
            (leaf, _version(leaf))
            for leaf in tree_leaves(batch)
            if not isinstance(leaf, Tensor) or leaf.device.type == "cpu"
        ]
        return batch

    def _advance(self) -> Any:
        if not self._looked_up and "first" not in self._epoch:
            self._epoch["first"] = place()
        return next(self.iterator)

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were taken, and what is needed to take them again.

        That is the state of batches that keep one. Of others it is where the epoch and its random
        numbers began, where the random numbers are now, and a digest of the last batch.
        """
        if isinstance(self.batches, Stateful):
            return {"taken": self.taken, "batches": self.batches.state_dict()}
        saved: dict[str, Any] = {"taken": self.taken, "batches": None, "digest": self._digest()}
        if self._draws_globally:
            epoch = {n: portable(p) for n, p in self._epoch.items() if n != "taken"}
            epoch["taken"] = self._epoch["taken"]
            saved |= {"epoch": epoch, "generators": portable(place())}
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a place; batches without a state of their own are drawn again up to there.

        Args:
            saved: What :meth:`state_dict` returned.

        Raises:
            DataError: The place lies behind, and the batches cannot start over; or they are not
                the same any more.
        """
        if saved["batches"] is not None and isinstance(self.batches, Stateful):
            self.batches.load_state_dict(saved["batches"])
            self.iterator = iter(self.batches)
            self.taken = saved["taken"]
            return
        epoch = saved.get("epoch")
        if epoch is not None or self.taken > saved["taken"]:
            if isinstance(self.batches, Iterator) and self.taken > 0:
                raise DataError(
                    f"{self.name}: it is an iterator, which cannot go back from batch {self.taken} "
                    f"to batch {saved['taken']}; pass a list or a DataLoader, or make it anew."
                )
            self.taken = 0 if epoch is None else epoch["taken"]
            if epoch is not None:
                go_to_portable(epoch["begin"])
            self._begin()
            if epoch is not None and "first" in epoch:
                go_to_portable(epoch["first"])
        while self.taken < saved["taken"]:
            self.next()
        if "generators" in saved:
            go_to_portable(saved["generators"])
        known = saved.get("digest")
        if known is not None and self._digest() not in (None, known):
            raise DataError(
                f"{self.name}: batch {self.taken} is another one than it was when the checkpoint "
                "was written, so that the training would go on with other data. It may be drawn "
                "from a random generator that is not seeded, or from a global one that others draw "
                "from meanwhile. Give it a generator of its own that begins anew with each "
                "iteration, or define state_dict and load_state_dict."
            )

    def _digest(self) -> str | None:
        """Return a digest of the last batch, or ``None`` where it was changed or cannot be read."""
        found = hashlib.blake2b(digest_size=16)
        for leaf, version in self._last:
            if _version(leaf) != version:
                return None
            if isinstance(leaf, Tensor):
                if leaf.layout is not torch.strided or leaf.is_quantized:
                    return None
                # A copy, since a view with bytes of its own needs plain strides and values.
                plain = leaf.clone(memory_format=torch.contiguous_format)
                found.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
                found.update(plain.view(-1).view(torch.uint8).numpy().data)
            elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
                found.update(f"{leaf.shape} {leaf.dtype}".encode())
                found.update(np.ascontiguousarray(leaf).tobytes())
            elif isinstance(leaf, int | float | str | bytes):
                found.update(repr(leaf).encode())
        return found.hexdigest()


def _version(leaf: Any) -> int:
    """Return how often a tensor was changed in place."""
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0
