"""Families of tasks that the benchmark of tasks measures, each by every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metatoolkit as mt
from metatoolkit.hypergradients import Estimator, FirstOrder, Unrolled
from metatoolkit.training.task_batching import Mode

Batch = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Support and query, each inputs and targets with a leading dimension of tasks."""


def squared_error(model: Any, meta: Any, batch: Any) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def cross_entropy(model: Any, meta: Any, batch: Any) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@dataclasses.dataclass
class Family:
    """Tasks, the network that adapts to them and its loss.

    Attributes:
        title: What is measured, for the page.
        model: The network, whose parameters are λ.
        loss: Inner and outer loss.
        batch: The tasks.
        lr: Inner learning rate.
        steps: Inner steps.
    """

    title: str
    model: nn.Module
    loss: Callable[[Any, Any, Any], Tensor]
    batch: Batch
    lr: float
    steps: int = 5

    def tasks(self) -> list[Any]:
        """Return support and query of each task."""
        (inputs, targets), query = self.batch
        rows = zip(inputs, targets, *query, strict=True)
        return [((a, b), (c, d)) for a, b, c, d in rows]


def sinusoids(tasks: int) -> Family:
    """Sinusoids of random amplitude and phase (Finn et al. 2017), 10 shots and 10 queries."""
    generator = torch.Generator().manual_seed(0)
    amplitudes = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
    phases = 3.14 * torch.rand(tasks, 1, 1, generator=generator)
    inputs = 10 * torch.rand(tasks, 20, 1, generator=generator) - 5
    targets = amplitudes * torch.sin(inputs - phases)
    support, query = (inputs[:, :10], targets[:, :10]), (inputs[:, 10:], targets[:, 10:])
    layers = (nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    title = f"{tasks} sinusoids, perceptron 1-40-40-1"
    return Family(title, nn.Sequential(*layers), squared_error, (support, query), 0.01)


def images(tasks: int) -> Family:
    """Images of noise, 5 ways with 1 shot and 15 queries in all, for 4 convolutions."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tasks, 20, 1, 28, 28, generator=generator)
    labels = (torch.arange(20) % 5).expand(tasks, 20)
    layers: list[nn.Module] = []
    for channels in (1, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))
    support, query = (inputs[:, :5], labels[:, :5]), (inputs[:, 5:], labels[:, 5:])
    return Family(
        f"{tasks} tasks of images, 4 convolutions", model, cross_entropy, (support, query), 0.1
    )


def by_hand(family: Family) -> Callable[[], list[Tensor]]:
    """The outer gradient as one writes it with ``torch.func``."""
    parameters = dict(family.model.named_parameters())

    def loss(parameters: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        def model(inputs: Tensor) -> Tensor:
            return functional_call(family.model, parameters, (inputs,))

        return family.loss(model, None, (inputs, targets))

    def adapted(parameters: Any, support: Any, query: Any) -> Tensor:
        for _ in range(family.steps):
            slope = grad(loss)(parameters, *support)
            parameters = {n: p - family.lr * slope[n] for n, p in parameters.items()}
        return loss(parameters, *query)

    def call() -> list[Tensor]:
        mean = vmap(adapted, in_dims=(None, 0, 0))(parameters, *family.batch).mean()
        return list(torch.autograd.grad(mean, list(parameters.values())))

    return call


def by_learn2learn(family: Family) -> Callable[[], list[Tensor]]:
    """The outer gradient by learn2learn's MAML, task after task."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(family.model, lr=family.lr, first_order=False)
    parameters, tasks = list(maml.parameters()), family.tasks()

    def call() -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for support, query in tasks:
            learner = maml.clone()
            for _ in range(family.steps):
                learner.adapt(family.loss(learner, None, support))
            found = torch.autograd.grad(family.loss(learner, None, query), parameters)
            total = [a + b / len(tasks) for a, b in zip(total, found, strict=True)]
        return total

    return call


def ours(
    make: Callable[[int], Estimator], batching: Mode
) -> Callable[[Family], Callable[[], list[Tensor]]]:
    """The outer gradient by :func:`metatoolkit.over_tasks`."""

    def of(family: Family) -> Callable[[], list[Tensor]]:
        meta = mt.metaparameters.Initialization(family.model)
        problem = mt.BilevelProblem(
            family.model, meta, family.loss, family.loss, initial=type(meta).values
        )
        inner, estimator = mt.inner.SGD(lr=family.lr), make(family.steps)

        def call() -> list[Tensor]:
            found = mt.over_tasks(problem, inner, estimator, family.batch, batching)
            return list(found.gradient.values())

        return call

    return of


METHODS: dict[str, Callable[[Family], Callable[[], list[Tensor]]]] = {
    "`torch.func` by hand": by_hand,
    "learn2learn": by_learn2learn,
    "`Unrolled`, loop": ours(Unrolled, "loop"),
    "`Unrolled`, vmap": ours(Unrolled, "vmap"),
    "`Unrolled`, vmap, graphs kept": ours(lambda n: Unrolled(n, keep_graphs=n), "vmap"),
    "`Unrolled`, auto": ours(Unrolled, "auto"),
    "`FirstOrder`, vmap": ours(FirstOrder, "vmap"),
}
"""How a family's outer gradient is computed, by name; the first one is the reference."""
