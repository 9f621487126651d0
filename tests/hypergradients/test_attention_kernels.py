"""Attention kernels with second derivatives are selected for a while, and put back."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from metatoolkit.hypergradients.attention_kernels import double_backward_kernels, only_math


def enabled():
    flags = torch.backends.cuda
    return flags.math_sdp_enabled(), flags.flash_sdp_enabled()


def test_kernels_that_can_be_differentiated_twice():
    before = enabled()
    with double_backward_kernels():
        assert enabled() == (True, False)
    assert enabled() == before
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with double_backward_kernels():
            assert enabled() == (True, False)
        assert enabled() == (False, True)


def test_within_one_another_and_within_others():
    before = enabled()
    with double_backward_kernels():
        with double_backward_kernels():
            assert only_math()
        assert only_math()
        # A loss may select its own in between.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), double_backward_kernels():
            assert enabled() == (True, False)
        assert only_math()
    assert enabled() == before
    for other in ("flash", "mem_efficient", "cudnn"):
        kinds = {"flash": "FLASH", "mem_efficient": "EFFICIENT", "cudnn": "CUDNN"}
        with sdpa_kernel([SDPBackend.MATH, getattr(SDPBackend, f"{kinds[other]}_ATTENTION")]):
            assert not only_math()
    with sdpa_kernel([]):
        assert not only_math()
