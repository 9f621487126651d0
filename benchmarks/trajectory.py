"""Hypergradients through long trajectories, beside higher and TorchOpt."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import loop_by_hand
from benchmarks.contenders.ours import ours
from benchmarks.contenders.peers import higher, torchopt
from benchmarks.estimators import Rates
from benchmarks.harness.declared import Benchmark, Case, Contender, Setup
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.hypergradients.kept_graphs import MEMORY_BUDGET

EXAMPLES = 1024
LR, MOMENTUM = 0.01, 0.9


class ExampleWeights(nn.Module):
    """λ: one weight for each training example.

    Args:
        examples: Number of examples.
    """

    def __init__(self, examples: int = EXAMPLES) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(examples))


def weighted_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the cross-entropy with a weight for each example."""
    inputs, targets, indices = batch
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    return (meta.logits[indices].sigmoid() * losses).mean()


def plain_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def convolutional_network() -> nn.Module:
    """Return three convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def batches(steps: int, size: int) -> tuple[list[Any], Any]:
    """Return training batches with the indices of their examples, and a validation batch.

    Args:
        steps: Number of training batches.
        size: Examples of each.
    """
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


def weighting(steps: int, network: Any = convolutional_network, size: int = 64) -> Setup:
    """A network that learns from weighted examples.

    Args:
        steps: Number of inner steps.
        network: Makes the network.
        size: Examples of a batch.
    """
    torch.manual_seed(0)
    problem = mt.BilevelProblem(network(), ExampleWeights(), weighted_loss, plain_loss)
    return Setup(problem, [batches(steps, size)], LR, MOMENTUM)


def perceptron() -> nn.Module:
    """Return a perceptron of one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def rates(steps: int) -> Setup:
    """The hyper-parameters of SGD for the perceptron.

    Args:
        steps: Number of inner steps.
    """
    torch.manual_seed(0)
    problem = mt.BilevelProblem(perceptron(), Rates(LR, MOMENTUM, 1e-4), plain_loss, plain_loss)
    return Setup(problem, [batches(steps, 32)], **Rates.rates())


def ways(steps: int) -> dict[str, Contender]:
    """Return what is measured through so many steps; the slower ones through short ones alone.

    Args:
        steps: Number of inner steps.
    """
    short = {
        "TorchOpt": torchopt(),
        "Unrolled, sqrt": ours(Unrolled(steps, checkpoint="sqrt")),
        "Unrolled, mixed mode": ours(Unrolled(steps, product="forward_over_reverse")),
    }
    return {
        "higher": higher(),
        "by hand": loop_by_hand(),
        "Unrolled": ours(Unrolled(steps)),
        "Unrolled, one graph": ours(Unrolled(steps, keep_graphs=1)),
        "Unrolled, tree": ours(Unrolled(steps, checkpoint="tree")),
        **(short if steps <= 100 else {}),
    }


def long_case(steps: int) -> Case:
    """Two ways through a trajectory that no graph would hold.

    Args:
        steps: Number of inner steps.
    """
    contender = ours(Unrolled(steps, checkpoint="tree", arity=22))
    return Case(
        partial(weighting, steps, perceptron, 32),
        {"Unrolled, tree of arity 22": contender},
        rounds=1,
        size=steps,
        quick=steps < 1000,
        counted=False,
    )


BENCHMARKS = [
    Benchmark(
        name="trajectory",
        title="Long trajectories",
        about="A convolutional network (19,178 parameters) on inputs of MNIST's shape, batches of "
        "64, SGD with momentum, one weight per training example as λ, float32, through T steps. "
        "`higher` keeps one graph of all steps, as TorchOpt and the loop by hand do; the error is "
        "the difference to its hypergradient. Recomputing each step once takes 4/3 of its passes.",
        figure="curves",
        axis="inner steps T",
        per_size=True,
        cases={
            f"T = {steps}": Case(
                partial(weighting, steps),
                ways(steps),
                reference="higher",
                rounds=1 if steps > 100 else 5,
                size=steps,
                quick=steps < 50,
            )
            for steps in (5, 50, 500)
        },
        after="`Unrolled` keeps the graphs of the last steps as far as they fit its memory budget "
        f'of {MEMORY_BUDGET // 2**20} MiB, and "one graph" is `keep_graphs=1`: it keeps all '
        "states, θ and its velocity, where `higher` keeps the activations of each step, too, so "
        "that the ratio of memory tends to that of the two. `sqrt` and `tree` (of arity 8) keep "
        "few states. On this network the mixed mode takes more time than the double backward and "
        "holds more than one graph: PyTorch's forward mode carries each tangent next to its tensor."
        "\n\nFor 10,000 steps see [very_long.md](very_long.md).",
    ),
    Benchmark(
        name="very_long",
        title="Ten thousand steps",
        about="A perceptron 784-32-10 on batches of 32, what its resident memory grows by in a "
        "call, in a process of its own, and its whole peak, PyTorch included. One call each. "
        "`ForwardMode` takes three hyper-parameters of SGD for λ, `Unrolled` a weight for each of "
        "1,024 examples.",
        figure="curves",
        axis="inner steps T",
        per_size=True,
        cases={
            **{f"a weight per example, T = {steps:,}": long_case(steps) for steps in (10, 10_000)},
            **{
                f"rates of SGD, T = {steps:,}": Case(
                    partial(rates, steps),
                    {"ForwardMode": ours(ForwardMode(steps))},
                    rounds=1,
                    size=steps,
                    quick=steps < 1000,
                    counted=False,
                )
                for steps in (10, 10_000)
            },
        },
    ),
]
