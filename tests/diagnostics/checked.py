"""Small problems in float32 that the tests of the check share, and an estimator that is wrong."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import (
    OneStep,
)
from metatoolkit.testing import bank


def check(problem, inner, estimator, batch, valid, **options):
    batches = [batch] * estimator.horizon
    return mt.check_hypergradient(problem, inner, estimator, batches, valid, **options)


def images(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, size, generator=generator), torch.randint(3, (8,), generator=generator)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def weighted(model, meta, batch):
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (meta.value.sigmoid() * losses).mean()


def plain(model, meta, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def build(train_loss=weighted, valid_loss=plain, model=None, meta=None, **options):
    meta = bank.Value(torch.linspace(-1, 1, 8).tolist()).float() if meta is None else meta
    return mt.BilevelProblem(model or network(), meta, train_loss, valid_loss, **options)


SGD = mt.inner.SGD(lr=0.3, momentum=0.9)


def weight_net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return mt.metaparameters.WeightNet(5)


class Broken(OneStep):
    """Wrong in one way or another."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def estimate(self, *arguments):
        result = super().estimate(*arguments)
        gradient = {n: self.change(n, g) for n, g in result.gradient.items()}
        return dataclasses.replace(result, gradient=gradient)


F64 = torch.float64
