"""Problems whose trajectories are long: weights of examples, and hyper-parameters of SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt

BATCH = 64
LR, MOMENTUM = 0.01, 0.9
EXAMPLES = 1024


class ExampleWeights(nn.Module):
    """λ: one weight for each training example."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(EXAMPLES))


class Rates(nn.Module):
    """λ: the hyper-parameters of SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([LR, MOMENTUM, 1e-4]))


def learned_rate(index: int) -> Callable[[Any, int], Tensor]:
    return lambda meta, step: meta.values[index]


def weighted_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    inputs, targets, indices = batch
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    return (meta.logits[indices].sigmoid() * losses).mean()


def plain_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def convolutional_network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def batches(steps: int, size: int = BATCH) -> tuple[list[Any], Any]:
    """Return training batches with the indices of their examples, and a validation batch."""
    generator = torch.Generator().manual_seed(0)
    # Classes that can be learned: on noise, long trajectories are chaotic and rounding decides.
    centers = torch.randn(10, 1, 28, 28, generator=generator)
    targets = torch.randint(10, (EXAMPLES,), generator=generator)
    inputs = centers[targets] + torch.randn(EXAMPLES, 1, 28, 28, generator=generator)
    parts = torch.arange(EXAMPLES).split(size)
    train = [(inputs[part], targets[part], part) for part in parts]
    noise = torch.randn(size, 1, 28, 28, generator=generator)
    valid = (centers[targets[:size]] + noise, targets[:size])
    return [train[step % len(train)] for step in range(steps)], valid


def weighting_problem() -> mt.BilevelProblem:
    torch.manual_seed(0)
    return mt.BilevelProblem(convolutional_network(), ExampleWeights(), weighted_loss, plain_loss)
