"""Outer gradients of MAML over batches of tasks, beside other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import batch_by_hand, loop_by_hand
from benchmarks.contenders.ours import ours_over_tasks
from benchmarks.contenders.peers import higher, learn2learn, torchopt
from benchmarks.harness.declared import Benchmark, Case, Setup
from benchmarks.trajectory import plain_loss
from metatoolkit.hypergradients import FirstOrder, Unrolled

STEPS = 5


def squared_error(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


def family(
    model: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Tensor,
    targets: Tensor,
    shots: int,
    lr: float,
) -> Setup:
    """Return tasks whose first examples are their support, the others their query.

    Args:
        model: The network, whose parameters are λ.
        loss: Inner and outer loss.
        inputs: Of shape (tasks, examples, ...).
        targets: Of shape (tasks, examples, ...).
        shots: Examples of the support.
        lr: Inner learning rate.
    """
    meta = mt.metaparameters.Initialization(model)
    problem = mt.BilevelProblem(model, meta, loss, loss, initial=type(meta).values)
    tasks = [
        ([(x[:shots], y[:shots])] * STEPS, (x[shots:], y[shots:]))
        for x, y in zip(inputs, targets, strict=True)
    ]
    support = inputs[:, :shots].flatten(0, 1), targets[:, :shots].flatten(0, 1)
    unit = partial(loss, model, meta, support)
    return Setup(problem, tasks, lr, begins_with_meta=True, unit=unit)


def sinusoids(tasks: int) -> Setup:
    """Sinusoids of random amplitude and phase (Finn et al. 2017), 10 shots and 10 queries.

    Args:
        tasks: Number of tasks.
    """
    generator = torch.Generator().manual_seed(0)
    amplitudes = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
    phases = 3.14 * torch.rand(tasks, 1, 1, generator=generator)
    inputs = 10 * torch.rand(tasks, 20, 1, generator=generator) - 5
    targets = amplitudes * torch.sin(inputs - phases)
    torch.manual_seed(0)
    layers = (nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    return family(nn.Sequential(*layers), squared_error, inputs, targets, 10, 0.01)


def images(tasks: int) -> Setup:
    """Images of noise, 5 ways with 1 shot and 15 queries in all, for 4 convolutions.

    Args:
        tasks: Number of tasks.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tasks, 20, 1, 28, 28, generator=generator)
    labels = (torch.arange(20) % 5).repeat(tasks, 1)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (1, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))
    return family(model, plain_loss, inputs, labels, 5, 0.1)


WAYS = {
    "`torch.func` by hand": batch_by_hand(),
    "loop by hand": loop_by_hand(),
    "learn2learn": learn2learn(),
    "higher": higher(),
    "TorchOpt": torchopt(),
    "`Unrolled`, loop": ours_over_tasks(Unrolled(STEPS), "loop"),
    "`Unrolled`, loop, one graph": ours_over_tasks(Unrolled(STEPS, keep_graphs=1), "loop"),
    "`Unrolled`, vmap": ours_over_tasks(Unrolled(STEPS), "vmap"),
    "`Unrolled`, vmap, one graph": ours_over_tasks(Unrolled(STEPS, keep_graphs=1), "vmap"),
    "`Unrolled`, auto": ours_over_tasks(Unrolled(STEPS), "auto"),
    "`FirstOrder`, vmap": ours_over_tasks(FirstOrder(STEPS), "vmap"),
}

BENCHMARKS = [
    Benchmark(
        name="tasks",
        title="Batches of tasks",
        about=f"One outer gradient of MAML: the mean over tasks, {STEPS} inner steps of SGD each, "
        "float32. The error is the difference to the gradient that is written by hand for all "
        "tasks at once, which `FirstOrder` means to differ from. F is one forward pass over the "
        "support of all tasks at once.",
        cases={
            "100 sinusoids, perceptron 1-40-40-1": Case(partial(sinusoids, 100), WAYS, quick=False),
            "10 sinusoids, perceptron 1-40-40-1": Case(partial(sinusoids, 10), WAYS),
            # Five turns do not tell the loop and learn2learn apart.
            "16 tasks of images, 4 convolutions": Case(
                partial(images, 16), WAYS, rounds=15, quick=False
            ),
        },
        after="`Unrolled(T)` holds the graphs of all steps where they fit its memory budget, as "
        'they do here and as the gradient by hand does. "One graph" is `Unrolled(T, '
        "keep_graphs=1)`, which computes each step but the last a second time, and takes less "
        'memory. `"auto"` measures both ways in its first call, which is not counted here. The '
        "loop of `Unrolled` moves the tensors of the perceptron at once, as those of up to "
        "4,096 entries, whose graph holds the gradients of the steps: a quarter more memory "
        "than one by one, as those of the convolutions move. What is checked for each task and "
        "step is at most a seventh of the perceptron's time; side by side it is checked once. "
        "Side by side, as by hand, tasks of images take a third of learn2learn's time and "
        "sixteen times its memory; the loop takes as much of both as learn2learn and TorchOpt, "
        "to a twentieth. Neither was measured on a GPU.",
    )
]
