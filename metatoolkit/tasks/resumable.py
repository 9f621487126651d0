"""Bases of endless iterators over batches whose place can be stored and found again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from metatoolkit.errors import CheckpointError

Item = TypeVar("Item")


class ResumableBatches(Iterator[Item]):
    """An endless iterator over batches; it goes on where it is whenever it is iterated over.

    A subclass makes each batch from its seed and its counters alone, and names both here.

    Attributes:
        kept: Names of the attributes that must be those of a stored place.
        counters: Names of the attributes that tell the place, beside ``seed``; all begin with 0.
        noun: What the batches are called in messages.
        seed: Seed of what is drawn.
    """

    kept: ClassVar[tuple[str, ...]] = ()
    counters: ClassVar[tuple[str, ...]] = ("next_batch",)
    noun: ClassVar[str] = "batches"
    seed: int

    def reseed(self, seed: int) -> None:
        """Start over with another seed.

        Args:
            seed: Seed of what is drawn.
        """
        self._go_to({"seed": seed, **dict.fromkeys(self.counters, 0)})

    def state_dict(self) -> dict[str, Any]:
        """Return the place of this iterator; the data are not part of it."""
        return self._kept() | self._place()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored place: the next batches are bitwise those that followed it.

        Args:
            state_dict: What :meth:`state_dict` of an iterator over the same data returned.

        Raises:
            CheckpointError: It belongs to other batches.
        """
        try:
            for name, mine in self._kept().items():
                if state_dict[name] != mine:
                    raise CheckpointError(
                        f"the stored {self.noun} have {name}={state_dict[name]!r}, these have "
                        f"{name}={mine!r}; make them with the stored value."
                    )
            place = {name: state_dict[name] for name in ("seed", *self.counters)}
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"this is no state of {type(self).__name__} ({error!r}); pass what state_dict() "
                "returned."
            ) from error
        self._go_to(place)

    def _place(self) -> dict[str, int]:
        """Return the seed and the counters by name."""
        return {name: getattr(self, name) for name in ("seed", *self.counters)}

    def _go_to(self, place: dict[str, int]) -> None:
        for name, value in place.items():
            setattr(self, name, value)
        self._moved()

    def _kept(self) -> dict[str, Any]:
        """Return what must be that of a stored place, by name."""
        return {name: getattr(self, name) for name in self.kept}

    def _moved(self) -> None:
        """Forget what belongs to the former place."""


class BatchesSideBySide(Iterator[Item]):
    """An endless iterator that makes each item from the next ones of several others.

    Args:
        parts: The others by name, each with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def state_dict(self) -> dict[str, Any]:
        """Return the places of the others by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored place.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            CheckpointError: It belongs to other batches.
        """
        for name, part in self.parts.items():
            part.load_state_dict(state_dict.get(name, {}))
