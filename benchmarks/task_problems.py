"""Families of tasks that the benchmark of tasks measures, each by every method."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
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


def loop_by_hand(family: Family) -> Callable[[], list[Tensor]]:
    """The same task after task, by ``torch.autograd`` on the network's own parameters."""
    names, values = zip(*family.model.named_parameters(), strict=True)
    tasks = family.tasks()

    def loss(parameters: Sequence[Tensor], batch: Any) -> Tensor:
        def model(inputs: Tensor) -> Tensor:
            given = dict(zip(names, parameters, strict=True))
            return functional_call(family.model, given, (inputs,))

        return family.loss(model, None, batch)

    def call() -> list[Tensor]:
        total = [torch.zeros_like(value) for value in values]
        for support, query in tasks:
            parameters: Sequence[Tensor] = values
            for _ in range(family.steps):
                slope = torch.autograd.grad(
                    loss(parameters, support), parameters, create_graph=True
                )
                parameters = [p - family.lr * g for p, g in zip(parameters, slope, strict=True)]
            found = torch.autograd.grad(loss(parameters, query), values)
            total = [a + b / len(tasks) for a, b in zip(total, found, strict=True)]
        return total

    return call


def by_higher(family: Family) -> Callable[[], list[Tensor]]:
    """The outer gradient by higher's ``innerloop_ctx``, task after task."""
    import higher

    parameters, tasks = list(family.model.parameters()), family.tasks()
    optimizer = torch.optim.SGD(parameters, lr=family.lr)

    def call() -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for support, query in tasks:
            context = higher.innerloop_ctx(family.model, optimizer, copy_initial_weights=False)
            with context as (model, inner):
                for _ in range(family.steps):
                    inner.step(family.loss(model, None, support))
                found = torch.autograd.grad(family.loss(model, None, query), parameters)
            total = [a + b / len(tasks) for a, b in zip(total, found, strict=True)]
        return total

    return call


def by_torchopt(family: Family) -> Callable[[], list[Tensor]]:
    """The outer gradient by TorchOpt's ``MetaSGD``, task after task."""
    import torchopt

    # Its steps change the module, whose tensors are put back after each task.
    model = copy.deepcopy(family.model)
    parameters, tasks = list(model.parameters()), family.tasks()
    optimizer = torchopt.MetaSGD(model, lr=family.lr)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (model, optimizer)]

    def call() -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for support, query in tasks:
            for _ in range(family.steps):
                optimizer.step(family.loss(model, None, support))
            found = torch.autograd.grad(family.loss(model, None, query), parameters)
            total = [a + b / len(tasks) for a, b in zip(total, found, strict=True)]
            for part, state in zip((model, optimizer), start, strict=True):
                torchopt.recover_state_dict(part, state)
        return total

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
    "loop by hand": loop_by_hand,
    "learn2learn": by_learn2learn,
    "higher": by_higher,
    "TorchOpt": by_torchopt,
    "`Unrolled`, loop": ours(Unrolled, "loop"),
    "`Unrolled`, loop, one graph": ours(lambda n: Unrolled(n, keep_graphs=1), "loop"),
    "`Unrolled`, vmap": ours(Unrolled, "vmap"),
    "`Unrolled`, vmap, one graph": ours(lambda n: Unrolled(n, keep_graphs=1), "vmap"),
    "`Unrolled`, auto": ours(Unrolled, "auto"),
    "`FirstOrder`, vmap": ours(FirstOrder, "vmap"),
}
"""How a family's outer gradient is computed, by name; the first one is the reference."""

PEERS = {"learn2learn": "learn2learn", "higher": "higher", "TorchOpt": "torchopt"}
"""Names of the peers, and of their modules."""

FAMILIES: dict[str, Callable[[int], Family]] = {"sinusoids": sinusoids, "images": images}
"""Makes a family of a number of tasks, by name."""
