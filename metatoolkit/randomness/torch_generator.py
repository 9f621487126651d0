"""The global generator of torch on the CPU: whether a pass has drawn from it, in no time.

``get_state`` and ``set_state`` go through tensors, and seeding mixes 624 words. Together they take
a twentieth of a small base step, which a loss that draws nothing need not pay. Where the state lies
in memory as it is expected to, which is checked, it is copied and compared there.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch

_WORDS = 624
_HEADER = struct.Struct("=QiB3xI")
"""Seed, words that are left, whether it was seeded, and the next word; the words follow."""
_SEEN = struct.Struct("=QiB3xIQ")
"""The header, and the first two words."""
_PAIRS = struct.Struct("=f?3xd?7x")
"""The second normal number of a pair, in two types, and whether there is one."""
_SIZE = _HEADER.size + 4 * _WORDS
_ALIGNED = -(-_SIZE // 8) * 8
_END = _ALIGNED + _PAIRS.size
_SEARCHED = 512

Saved = tuple[bytes, tuple[Any, ...]]
"""State of a generator, as :meth:`TorchGenerator.save` returns it."""


def _address(generator: torch.Generator) -> int:
    """Return where the object of a generator lies, 0 where torch does not tell."""
    return getattr(generator, "_cdata", 0)


def _place(generator: torch.Generator) -> int | None:
    """Return where the state of a generator lies in its object, or ``None`` if not as known."""
    generator.manual_seed(7)
    torch.rand(3, generator=generator)
    saved = generator.get_state().numpy().tobytes()
    header = struct.unpack_from("=QiiQ", saved)
    words = struct.pack(f"={_WORDS}I", *struct.unpack_from(f"={_WORDS}Q", saved, 24))
    address = _address(generator)
    if address == 0:
        return None
    place = ctypes.string_at(address, _SEARCHED).find(words[:64]) - _HEADER.size
    if place < 0 or (address + place) % 8:
        return None
    found = ctypes.string_at(address + place, _SIZE)
    if _HEADER.unpack_from(found) != header or found[_HEADER.size :] != words:
        return None
    return place


def _memory(generator: torch.Generator, place: int) -> memoryview:
    return memoryview((ctypes.c_char * _END).from_address(_address(generator) + place)).cast("B")


def _draw(generator: torch.Generator) -> list[float]:
    """Draw in each way that keeps something: words, and normal numbers in pairs of two types."""
    found = [torch.rand(5, generator=generator)]
    for dtype in (torch.float32, torch.float64):
        found += [torch.randn((), dtype=dtype, generator=generator) for _ in range(3)]
    return torch.cat([part.double().flatten() for part in found]).tolist()


def _is_known(generator: torch.Generator, place: int) -> bool:
    """Return whether bringing the memory back brings the generator back."""
    memory = _memory(generator, place)
    for draws in range(4):
        generator.manual_seed(11 + draws)
        for _ in range(draws):
            torch.randn((), generator=generator)
        state, block = generator.get_state(), memory.tobytes()
        first = _draw(generator)
        memory[:] = block
        if not torch.equal(generator.get_state(), state) or _draw(generator) != first:
            return False
        torch.randn((), generator=generator)
        before = memory.tobytes()
        # The second of a pair moves no word.
        torch.randn((), generator=generator)
        if memory.tobytes() == before:
            return False
    return True


class TorchGenerator:
    """A generator of torch on the CPU, whose state is read where it lies.

    Args:
        generator: The generator.

    Attributes:
        known: Whether its state lies where it is expected to; without it nothing can be asked.
    """

    def __init__(self, generator: torch.Generator) -> None:
        probe = torch.Generator()
        place = _place(probe)
        self.known = place is not None and _is_known(probe, place)
        block = _memory(generator, place) if place is not None and self.known else None
        self._block = memoryview(bytearray(_END)) if block is None else block
        self._saved: Saved = b"", ()

    def save(self) -> Saved:
        """Return the state, for :meth:`moved` and :meth:`restore`.

        It is copied only where it has moved since the last time.
        """
        told = self._told()
        if told != self._saved[1]:
            self._saved = self._block.tobytes(), told
        return self._saved

    def moved(self, saved: Saved) -> bool:
        """Return whether it was drawn from, or seeded with another number, since a :meth:`save`.

        Args:
            saved: What that returned.
        """
        return self._told() != saved[1]

    def _told(self) -> tuple[Any, ...]:
        """Return what each draw changes, without what lies between and is of no account."""
        # A draw takes a word, which is counted; where they are used up, all are made anew; or it
        # takes the second number of a pair.
        one, has_one, other, has_other = _PAIRS.unpack_from(self._block, _ALIGNED)
        return _SEEN.unpack_from(self._block), has_one and one, has_other and other

    def restore(self, saved: Saved) -> None:
        """Bring it back to where it was.

        Args:
            saved: What :meth:`save` returned.
        """
        self._block[:] = saved[0]


TORCH_GENERATOR = TorchGenerator(torch.default_generator)
