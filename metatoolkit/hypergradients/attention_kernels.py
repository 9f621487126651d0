"""Attention kernels that have second derivatives, for passes that are differentiated twice."""

from __future__ import annotations

import torch
from torch.backends import cuda

from metatoolkit.stateless.exchange import turn

# What torch.nn.attention.sdpa_kernel(SDPBackend.MATH) sets; that takes ten times as long.
_ENABLED = (
    torch._C._get_math_sdp_enabled,
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_cudnn_sdp_enabled,
    torch._C._get_overrideable_sdp_enabled,
)
_ENABLE = (
    cuda.enable_math_sdp,
    cuda.enable_flash_sdp,
    cuda.enable_mem_efficient_sdp,
    cuda.enable_cudnn_sdp,
    torch._C._set_sdp_use_overrideable,
)
_MATH = [True, False, False, False, False]


def only_math() -> bool:
    """Return whether attention is computed by the math kernel alone as it is."""
    return [enabled() for enabled in _ENABLED] == _MATH


class double_backward_kernels:
    """Select attention kernels that can be differentiated twice, for all threads, in turn."""

    def __enter__(self) -> None:
        """Select them, unless they are."""
        self._turn = turn()
        self._turn.__enter__()
        self._before = [enabled() for enabled in _ENABLED]
        self._select(self._before, _MATH)

    def __exit__(self, *error: object) -> None:
        """Select the former ones.

        Args:
            error: Not used.
        """
        self._select(_MATH, self._before)
        self._turn.__exit__(None, None, None)

    @staticmethod
    def _select(before: list[bool], after: list[bool]) -> None:
        if before != after:
            for enable, on in zip(_ENABLE, after, strict=True):
                enable(on)
