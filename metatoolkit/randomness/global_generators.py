"""The global random generators of Python and NumPy: saved, seeded and restored in a microsecond.

Their public functions turn 624 words into Python objects and back, which takes as long as half a
base step of a small network. Where the words lie in memory as they are expected to, which is
checked, they are copied instead.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from typing import Any

import numpy as np
from numpy.random import mtrand

_WORDS = 624
_SIZE = 4 * (_WORDS + 1)
_GAUSS = 16
_SEEN = struct.Struct("=III")
"""The position and two words, at the beginning of Python's and at the end of NumPy's state."""
_LAST = _SIZE - _SEEN.size
_LOW = 0xFFFFFFFF
_ODD = 0x9E3779B1

Saved = tuple[Any, ...]
"""State of both generators, as :func:`save` returns it."""


def _memory(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _python_memory(generator: random.Random) -> memoryview | None:
    """Return where the position and the words of a generator lie, or ``None`` if not as known."""
    start, kind = object.__basicsize__, type(generator)
    if sys.implementation.name != "cpython" or kind.__basicsize__ < start + _SIZE:
        return None
    probe = kind(7)
    seen = _memory(id(probe) + start, _SIZE)
    for draws in (0, 5):
        for _ in range(draws):
            probe.random()
        *words, position = probe.getstate()[1]
        if bytes(seen) != struct.pack("=625I", position, *words):
            return None
    return _memory(id(generator) + start, _SIZE)


def _numpy_memory(bits: Any) -> memoryview | None:
    """Return where the words and the position of NumPy's bit generator lie, or ``None``."""
    if type(bits) is not np.random.MT19937:
        return None
    seen = _memory(bits.ctypes.state_address, _SIZE)
    state = bits.state["state"]
    if bytes(seen) != struct.pack("=625I", *state["key"].tolist(), state["pos"]):
        return None
    return seen


def _gauss_offset() -> int | None:
    """Return where NumPy's legacy generator keeps the second number of a pair, or ``None``."""
    probe = np.random.RandomState(7)
    size = type(probe).__basicsize__
    found = None
    for value in (3.25, -0.1875):
        probe.set_state(probe.get_state(legacy=False) | {"has_gauss": 1, "gauss": value})
        content = bytes(_memory(id(probe), size))
        pattern = struct.pack("=i4xd", 1, value)
        place = content.find(pattern[8:]) - 8
        if content.count(pattern[8:]) != 1 or place < object.__basicsize__:
            return None
        if content[place : place + 4] != pattern[:4] or found not in (None, place):
            return None
        found = place
    probe.set_state(probe.get_state(legacy=False) | {"has_gauss": 0, "gauss": 0.0})
    content = bytes(_memory(id(probe), size))
    return found if found is not None and content[found : found + 4] == bytes(4) else None


class GlobalGenerators:
    """Python's ``random`` and ``numpy.random``, the ones that all code of a process shares.

    Args:
        direct: Whether memory is copied where it can be; the public functions give the same.
    """

    def __init__(self, direct: bool = True) -> None:
        self._python: random.Random = random.random.__self__  # type: ignore[attr-defined]
        self._numpy: np.random.RandomState = np.random.random_sample.__self__  # type: ignore
        self._words = _python_memory(self._python) if direct else None
        offset = _gauss_offset() if direct and self._words is not None else None
        self._gauss = None if offset is None else _memory(id(self._numpy) + offset, _GAUSS)
        # The address of a generator that is gone must not be read: this one is kept.
        self._known: Any = None
        self._saved: Saved | None = None
        self._told_then: tuple[Any, ...] = ()
        self._key: memoryview | None = None
        self._own = np.random.MT19937(0)

    def save(self) -> Saved:
        """Return the state of both generators, for :meth:`restore`.

        It is copied only where it has moved since the last time.
        """
        bits = mtrand.get_bit_generator()
        if bits is not self._known:
            self._known, self._saved = bits, None
            self._key = None if self._gauss is None else _numpy_memory(bits)
        if self._key is None or self._words is None or self._gauss is None:
            return bits, self._python.getstate(), np.random.get_state(legacy=False)
        told = self._told()
        if self._saved is None or self._told_then != told:
            self._told_then = told
            self._saved = (
                bits,
                self._words.tobytes(),
                self._python.gauss_next,  # type: ignore[attr-defined]
                self._key.tobytes(),
                self._gauss.tobytes(),
            )
        return self._saved

    def moved(self, saved: Saved) -> bool:
        """Return whether either was drawn from, or seeded, since a :meth:`save`.

        Args:
            saved: What :meth:`save` returned.
        """
        now = self.save()
        if now is saved:
            return False
        if len(now) != len(saved) or now[0] is not saved[0]:
            return True
        return now[1:] != saved[1:] if len(now) > 3 else repr(now[1:]) != repr(saved[1:])

    def _told(self) -> tuple[Any, ...]:
        """Return what each draw changes, where both lie in memory as they are expected to."""
        # A draw moves the position; where the words are used up, all of them are made anew.
        return (
            _SEEN.unpack_from(self._words),  # type: ignore[arg-type]
            _SEEN.unpack_from(self._key, _LAST),  # type: ignore[arg-type]
            self._python.gauss_next,  # type: ignore[attr-defined]
            self._gauss.tobytes(),  # type: ignore[union-attr]
        )

    def seed(self, key: int) -> None:
        """Seed both, after a :meth:`save`, with the same numbers on every machine.

        Args:
            key: Seed in ``[0, 2**64)``; all its bits count.
        """
        high = key >> 32
        first, second = (high ^ key * _ODD) & _LOW, (high * _ODD ^ key) & _LOW
        if first == second:
            # The two would be copies of each other, as for the key 0.
            second ^= 1
        if (memory := self._key) is not None and self._words is not None:
            self._numpy.seed(first)
            self._words[4:] = memory[:-4]
            self._words[:4] = memory[-4:]
            self._python.gauss_next = None  # type: ignore[attr-defined]
        else:
            mtrand.set_bit_generator(self._own)
            self._numpy.seed(first)
            state = self._own.state["state"]
            self._python.setstate((3, (*state["key"].tolist(), state["pos"]), None))
        self._numpy.seed(second)

    def restore(self, saved: Saved) -> None:
        """Bring both back to where they were.

        Args:
            saved: What :meth:`save` returned.
        """
        bits, *state = saved
        if mtrand.get_bit_generator() is not bits:
            mtrand.set_bit_generator(bits)
        if len(state) == 2:
            self._python.setstate(state[0])
            np.random.set_state(state[1])
            return
        if bits is not self._known or self._key is None:
            self._known = None
            self.save()
        words, gauss_next, key, gauss = state
        self._words[:] = words  # type: ignore[index]
        self._python.gauss_next = gauss_next  # type: ignore[attr-defined]
        self._key[:] = key  # type: ignore[index]
        self._gauss[:] = gauss  # type: ignore[index]


GLOBAL_GENERATORS = GlobalGenerators()
