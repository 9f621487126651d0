"""Transforms that are not the identity."""

import torch


def randomized(transform, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in transform.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(0.5 * noise)
    return transform
