"""Random keys: every random draw inside a step comes from a key, never from the global state."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.random import mtrand

from metatoolkit.randomness import torch_generator
from metatoolkit.randomness.global_generators import GLOBAL_GENERATORS, Saved
from metatoolkit.randomness.torch_generator import TORCH_GENERATOR
from metatoolkit.randomness.traced import TracedKey

Place = tuple[torch.Tensor, Saved | None, list[tuple[Any, torch.Tensor]]]
"""States of torch's generator of the CPU, those of Python and NumPy, and those of devices."""

_CPU = torch.default_generator
_MASK = (1 << 64) - 1


def fold_in(key: int, *data: int) -> int:
    """Derive a new key from a key and integers, as ``jax.random.fold_in`` does.

    Args:
        key: Key to derive from.
        data: Integers that tell the new key from its siblings, for instance a step number.

    Returns:
        A key in ``[0, 2**63)``, equal for equal arguments on every machine (SplitMix64 mixing).
    """
    if type(key) is TracedKey:
        return key.fold(data)
    mixed = key & _MASK
    for number in data:
        mixed = (mixed + 0x9E3779B97F4A7C15 * ((number & _MASK) + 1)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    folded = mixed >> 1
    return key.folded(folded, data) if isinstance(key, Keys) else folded


class Keys(int):
    """Keys of tasks that run side by side: a key, from which :func:`fold_in` derives such keys.

    Args:
        keys: One key for each task, at least one.

    Example:
        >>> fold_in(Keys([3, 4]), 7).each() == [fold_in(3, 7), fold_in(4, 7)]
        True
    """

    _roots: Sequence[int]
    _path: tuple[tuple[int, ...], ...]

    def __new__(cls, keys: Sequence[int]) -> Self:
        """Return the keys, as a number that tells them from others."""
        first, *others = keys
        own = super().__new__(cls, fold_in(first, *others))
        own._roots, own._path = keys, ()
        return own

    def folded(self, number: int, data: tuple[int, ...]) -> Keys:
        """Return the keys that are derived from each of these.

        Args:
            number: The key that is derived from the number of these.
            data: The integers that all of them are derived by.
        """
        keys = int.__new__(Keys, number)
        keys._roots, keys._path = self._roots, (*self._path, data)
        return keys

    def each(self) -> list[int]:
        """Return the key of each task; they are derived here, since few steps draw."""
        keys = list(self._roots)
        for data in self._path:
            keys = [fold_in(key, *data) for key in keys]
        return keys


class seeded:
    """Draw every random number of the body from a key, and restore the global state afterwards.

    That holds for the global generators of torch, Python's ``random`` and ``numpy.random``.
    Dropout masks are therefore the same whenever a step is computed again with the same key.
    Generators of their own (``torch.Generator``, ``numpy.random.default_rng``, ``random.Random``)
    cannot be rewound.

    Args:
        key: Seed for the body.
        devices: Devices whose generators the body uses; the CPU is always included.
        python: Whether the generators of Python and NumPy are seeded; they are restored anyway.

    Attributes:
        missed: Whether the body drew from a generator of Python or NumPy that was not seeded.
        drew: Whether it drew from that of torch on the CPU, as far as it is known.
    """

    __slots__ = ("_devices", "_key", "_place", "_python", "_start", "drew", "missed")

    def __init__(self, key: int, devices: Iterable[torch.device] = (), python: bool = True) -> None:
        self._key = key
        self._devices = devices
        self._python = python
        self._start: torch_generator.Saved | None = None
        self.missed = self.drew = False

    def __enter__(self) -> Self:
        """Seed the generators."""
        if type(self._key) is TracedKey:
            self._key.clock.seed(self._key)
        self._place = place(self._devices)
        _CPU.manual_seed(self._key)
        if TORCH_GENERATOR.known:
            self._start = TORCH_GENERATOR.save()
        if self._python:
            GLOBAL_GENERATORS.seed(self._key)
        for generator, _ in self._place[2]:
            generator.manual_seed(self._key)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the generators.

        Args:
            error: Not used.
        """
        if type(self._key) is TracedKey:
            self._key.clock.seed(None)
        if self._start is not None:
            self.drew = TORCH_GENERATOR.moved(self._start)
        if self._python:
            go_to(self._place)
            return
        cpu, saved, others = self._place
        self.missed = saved is not None and GLOBAL_GENERATORS.moved(saved)
        go_to((cpu, saved if self.missed else None, others))


class undrawn:
    """Tell whether a body draws that is expected not to, and take its draws back.

    It costs a fraction of what seeding does, and is to be used only where the generator of torch
    is known in memory.

    Attributes:
        missed: Whether the body drew from the global generators of Python or NumPy.
        drew: Whether it drew from that of torch on the CPU.
    """

    __slots__ = ("_others", "_torch", "drew", "missed")

    def __enter__(self) -> Self:
        """Note where the generators are."""
        self._torch, self._others = TORCH_GENERATOR.save(), GLOBAL_GENERATORS.save()
        return self

    def __exit__(self, *error: object) -> None:
        """Bring them back, if they have moved.

        Args:
            error: Not used.
        """
        self.drew = TORCH_GENERATOR.moved(self._torch)
        self.missed = GLOBAL_GENERATORS.moved(self._others)
        if self.drew:
            TORCH_GENERATOR.restore(self._torch)
        if self.missed:
            GLOBAL_GENERATORS.restore(self._others)


def place(devices: Iterable[torch.device] = ()) -> Place:
    """Return where the global generators are, for :func:`go_to`.

    Args:
        devices: Devices whose generators are included, beside the CPU's, Python's and NumPy's.
    """
    others = []
    for device in devices:
        if device.type != "cpu" and (generator := _device_generator(device)) is not None:
            others.append((generator, generator.get_state()))
    return _CPU.get_state(), GLOBAL_GENERATORS.save(), others


def go_to(place: Place) -> None:
    """Bring the global generators to a place.

    Args:
        place: What :func:`place` returned.
    """
    cpu, saved, others = place
    _CPU.set_state(cpu)
    if saved is not None:
        GLOBAL_GENERATORS.restore(saved)
    for generator, state in others:
        generator.set_state(state)


def has_moved(place: Place) -> bool:
    """Return whether a global generator of the CPU was drawn from since a :func:`place`.

    Args:
        place: What that returned.
    """
    cpu, saved, _ = place
    if not torch.equal(cpu, _CPU.get_state()):
        return True
    return saved is not None and GLOBAL_GENERATORS.moved(saved)


def portable(place_then: Place) -> dict[str, Any]:
    """Return a place of the global generators of the CPU as plain content of a checkpoint.

    Args:
        place_then: What :func:`place` returned, then or now.
    """
    now = place()
    go_to(place_then)
    try:
        return {
            "torch": _CPU.get_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
        }
    finally:
        go_to(now)


def go_to_portable(place: dict[str, Any]) -> None:
    """Bring the global generators of the CPU to a place, in another process if need be.

    Args:
        place: What :func:`portable` returned.
    """
    _CPU.set_state(place["torch"])
    random.setstate(place["python"])
    kind = getattr(np.random, place["numpy"]["bit_generator"])
    if type(mtrand.get_bit_generator()) is not kind:
        mtrand.set_bit_generator(kind())
    np.random.set_state(place["numpy"])


@functools.cache
def _device_generator(device: torch.device) -> Any:
    """Return the global generator of a device, or ``None`` where it has none, as ``meta``."""
    try:
        module = torch.get_device_module(device)
    except RuntimeError:
        return None
    generators = getattr(module, "default_generators", None)
    if generators:
        return generators[module.current_device() if device.index is None else device.index]
    return _ModuleGenerator(module) if hasattr(module, "get_rng_state") else None


@dataclasses.dataclass(frozen=True)
class _ModuleGenerator:
    """The generator of a device that is reached by functions of its module alone, as for MPS."""

    module: Any

    def get_state(self) -> torch.Tensor:
        return self.module.get_rng_state()

    def set_state(self, state: torch.Tensor) -> None:
        self.module.set_rng_state(state)

    def manual_seed(self, key: int) -> None:
        self.module.manual_seed(key)
