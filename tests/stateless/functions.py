"""Custom functions with and without a second derivative."""

import torch
from torch.autograd.function import once_differentiable

import metatoolkit as mt
from metatoolkit.testing import bank


def value_case(train_loss, x=0.7, penalty=0.4):
    def valid_loss(model, meta, batch):
        return (model.value - 0.5) ** 2

    problem = mt.BilevelProblem(bank.Value(x), bank.Value(penalty), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Once(Square):
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient
