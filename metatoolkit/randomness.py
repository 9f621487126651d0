"""Random keys: every random draw inside a step comes from a key, never from the global state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

_MASK = (1 << 64) - 1


def fold_in(key: int, *data: int) -> int:
    """Derive a new key from a key and integers, as ``jax.random.fold_in`` does.

    Args:
        key: Key to derive from.
        data: Integers that tell the new key from its siblings, for instance a step number.

    Returns:
        A key in ``[0, 2**63)``, equal for equal arguments on every machine (SplitMix64 mixing).
    """
    mixed = key & _MASK
    for number in data:
        mixed = (mixed + 0x9E3779B97F4A7C15 * ((number & _MASK) + 1)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1


@contextlib.contextmanager
def seeded(key: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Draw every random number of the body from ``key`` and restore the global state afterwards.

    Dropout masks are therefore the same whenever a step is computed again with the same key.

    Args:
        key: Seed for the body.
        devices: Devices whose generators the body uses; the CPU is always included.

    Yields:
        Nothing.
    """
    indices = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    cpu_state = torch.get_rng_state()
    cuda_states = [(i, torch.cuda.get_rng_state(i)) for i in indices]
    try:
        torch.default_generator.manual_seed(key)
        for index in indices:
            torch.cuda.default_generators[index].manual_seed(key)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        for index, state in cuda_states:
            torch.cuda.set_rng_state(state, index)
