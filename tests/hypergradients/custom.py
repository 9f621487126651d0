"""Custom functions that several tests differentiate."""

import numpy as np
import torch


class NumpySine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return torch.from_numpy(np.sin(inputs.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class Product(torch.autograd.Function):
    """Two arguments, a number, and the newer way to write it."""

    @staticmethod
    def forward(one, other, factor):
        return factor * one.detach() * other.detach()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx, gradient):
        one, other = ctx.saved_tensors
        return ctx.factor * gradient * other, ctx.factor * gradient * one, None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return (inputs * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@torch.library.custom_op("metatoolkit_tests::sine", mutates_args=())
def sine(inputs: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(inputs.detach().numpy()))


sine.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)
