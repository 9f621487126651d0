"""Whether losses and hypergradients are finite."""

from __future__ import annotations

import cmath
from collections.abc import Mapping

import torch
from torch import Tensor

from metatoolkit.errors import NonFiniteError
from metatoolkit.stateless.traced_flags import holds, is_traced


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise unless every entry of every tensor is finite; one device synchronization if so.

    Args:
        tensors: What each tensor is, in words, to the tensor.

    Raises:
        NonFiniteError: The first tensor that is not finite is named.
    """
    # A sum is finite only if all entries are, and takes no memory.
    sums = torch.stack([t.sum() if t.dim() else t for t in tensors.values()])
    if is_traced():
        holds(~torch.isfinite(sums).all())
        return
    if all(map(cmath.isfinite, sums.tolist())):
        return
    flags = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()]).tolist()
    for (name, tensor), finite in zip(tensors.items(), flags, strict=True):
        if not finite:
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{name} is not finite ({bad} of {tensor.numel()} entries are NaN or infinite). "
                "Lower the learning rates, check the batch for NaN, or keep logarithms and roots "
                "away from zero."
            )
