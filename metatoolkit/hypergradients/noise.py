"""Standard noise in the shape of named tensors, drawn from a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from metatoolkit.randomness import fold_in
from metatoolkit.state import Tensors


def standard_noise(
    tensors: Mapping[str, Tensor], kind: Literal["sign", "gaussian"], key: int
) -> Tensors:
    """Draw independent noise of mean 0 and variance 1 for each entry of each tensor.

    Args:
        tensors: Tensors that give names, shapes, devices and types.
        kind: ``"sign"`` (±1) or ``"gaussian"``.
        key: Random key; equal keys give equal noise.

    Returns:
        One tensor for each of ``tensors``. Those of one device and type share their memory.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    drawn: Tensors = {}
    for index, ((device, dtype), names) in enumerate(groups.items()):
        generator = torch.Generator(device).manual_seed(fold_in(key, index))
        sizes = [tensors[name].numel() for name in names]
        # One draw for all: many small ones cost more than the passes of a small network.
        flat = torch.empty(sum(sizes), device=device, dtype=dtype)
        if kind == "gaussian":
            flat.normal_(generator=generator)
        else:
            flat.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
        for name, part in zip(names, flat.split(sizes), strict=True):
            drawn[name] = part.view_as(tensors[name])
    return {name: drawn[name] for name in tensors}
