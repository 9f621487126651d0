"""Batches for a training loop, which may start over and resume where they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from metatoolkit.errors import DataError


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

    Args:
        name: The argument that the batches came in, for messages.
        batches: Batches; an iterable that is exhausted starts over.
    """

    def __init__(self, name: str, batches: Iterable[Any]) -> None:
        self.name = name
        self.batches = batches
        self.taken = 0
        self.iterator: Iterator[Any] = iter(batches)

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: There is none, and the batches cannot start over.
        """
        try:
            batch = next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.batches)
            try:
                batch = next(self.iterator)
            except StopIteration:
                remedy = (
                    "it holds no batch"
                    if self.taken == 0
                    else "it is exhausted and cannot start again; pass a list, a DataLoader or an "
                    "endless iterator"
                )
                raise DataError(f"{self.name}: {remedy}.") from None
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were taken, and the state of batches that keep one."""
        own = self.batches.state_dict() if isinstance(self.batches, Stateful) else None
        return {"taken": self.taken, "batches": own}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a place; batches without a state of their own are drawn again up to there.

        Args:
            saved: What :meth:`state_dict` returned.

        Raises:
            DataError: The place lies behind, and the batches cannot start over.
        """
        if saved["batches"] is not None and isinstance(self.batches, Stateful):
            self.batches.load_state_dict(saved["batches"])
            self.iterator = iter(self.batches)
            self.taken = saved["taken"]
            return
        if self.taken > saved["taken"]:
            self.iterator = iter(self.batches)
            if self.iterator is self.batches:
                raise DataError(
                    f"{self.name}: it is an iterator, which cannot go back from batch {self.taken} "
                    f"to batch {saved['taken']}; pass a list or a DataLoader, or make it anew."
                )
            self.taken = 0
        while self.taken < saved["taken"]:
            self.next()
