"""Hypergradients as one writes them in plain PyTorch, with nothing checked: the control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.harness.declared import Call, Contender, Setup


class ModuleAt:
    """A model at some parameters, as losses call it and read parameters of its own.

    Args:
        setup: The problem.
        named: The parameters by name.
    """

    def __init__(self, setup: Setup, named: dict[str, Tensor]) -> None:
        self._model = setup.problem.model
        self._named = named

    def __call__(self, *inputs: Any) -> Any:
        """Return the outputs."""
        return functional_call(self._model, self._named, inputs)

    def __getattr__(self, name: str) -> Tensor:
        """Return a parameter."""
        return self._named[name]


def _start(setup: Setup) -> dict[str, Tensor]:
    if setup.begins_with_meta:
        return dict(setup.problem.model.named_parameters())
    return {name: p.detach().requires_grad_() for name, p in setup.state.parameters.items()}


def mean_over_tasks(setup: Setup, one: Any) -> list[Tensor]:
    """Return the mean of the tensors that a function returns for each task.

    Args:
        setup: The problem.
        one: Called with the training batches and the validation batch of a task.
    """
    total: list[Tensor] = []
    for batches, valid in setup.tasks:
        found = [part.detach() for part in one(batches, valid)]
        total = found if not total else [a.add_(b) for a, b in zip(total, found, strict=True)]
    return total if len(setup.tasks) == 1 else [part / len(setup.tasks) for part in total]


def _at(rate: Any, meta: Any, step: int) -> Any:
    return rate(meta, step) if callable(rate) else rate


def _loop(setup: Setup) -> Call:
    problem, meta, leaves = setup.problem, setup.problem.meta, setup.leaves
    start = _start(setup)
    names = list(start)

    def one(batches: Sequence[Any], valid: Any) -> Sequence[Tensor]:
        values, speeds = list(start.values()), None
        for step, batch in enumerate(batches):
            model = ModuleAt(setup, dict(zip(names, values, strict=True)))
            loss = problem.train_loss(model, meta, batch)
            slopes = torch.autograd.grad(loss, values, create_graph=True)
            rate, momentum, decay = (
                _at(one, meta, step) for one in (setup.lr, setup.momentum, setup.weight_decay)
            )
            if callable(setup.weight_decay) or decay:
                slopes = [g + decay * p for g, p in zip(slopes, values, strict=True)]
            if callable(setup.momentum) or momentum:
                if speeds is not None:
                    slopes = [momentum * v + g for v, g in zip(speeds, slopes, strict=True)]
                speeds = slopes
            values = [p - rate * g for p, g in zip(values, slopes, strict=True)]
        model = ModuleAt(setup, dict(zip(names, values, strict=True)))
        return torch.autograd.grad(problem.valid_loss(model, meta, valid), leaves)

    return lambda: mean_over_tasks(setup, one)


def loop_by_hand() -> Contender:
    """Unroll SGD by ``torch.autograd`` with one graph of all steps, task after task."""
    return Contender(_loop)


def _batched(setup: Setup) -> Call:
    parameters = dict(setup.problem.model.named_parameters())
    meta, rate = setup.problem.meta, setup.lr
    pairs = [(batches[0], valid) for batches, valid in setup.tasks]
    support, query = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *pairs)

    def loss(named: Any, batch: Any) -> Tensor:
        return setup.problem.train_loss(ModuleAt(setup, named), meta, batch)

    def adapted(named: Any, support: Any, query: Any) -> Tensor:
        for _ in range(setup.steps):
            slope = grad(loss)(named, support)
            named = {n: p - rate * slope[n] for n, p in named.items()}
        return setup.problem.valid_loss(ModuleAt(setup, named), meta, query)

    def call() -> Sequence[Tensor]:
        mean = vmap(adapted, in_dims=(None, 0, 0))(parameters, support, query).mean()
        return torch.autograd.grad(mean, list(parameters.values()))

    return call


def batch_by_hand() -> Contender:
    """Take all tasks at once by ``torch.func``, λ being where their steps start."""
    return Contender(_batched)


def evograd_by_hand(candidates: int, sigma: float, temperature: float, lr: float) -> Contender:
    """EvoGrad's formulas (Bohdal et al. 2021): candidates, their softmax, the outer loss there.

    Args:
        candidates: Number of candidates K.
        sigma: Size of the signs that they differ by.
        temperature: Temperature τ of the softmax.
        lr: Learning rate to which the result is scaled, σ² (K − 1) / (K τ) being its own.
    """
    scale = lr * candidates * temperature / (sigma**2 * (candidates - 1))

    def build(setup: Setup) -> Call:
        ((batches, valid),) = setup.tasks
        problem, meta, leaves = setup.problem, setup.problem.meta, setup.leaves
        start = {name: p.detach() for name, p in setup.state.parameters.items()}

        def call(draw: int = 0) -> Sequence[Tensor]:
            generator = torch.Generator().manual_seed(draw)
            several, losses = [], []
            for _ in range(candidates):
                several.append(
                    {
                        n: p + sigma * torch.randn(p.shape, generator=generator).sign()
                        for n, p in start.items()
                    }
                )
                losses.append(problem.train_loss(ModuleAt(setup, several[-1]), meta, batches[0]))
            weights = torch.softmax(-torch.stack(losses) / temperature, 0)
            mean = {
                n: sum(w * one[n] for w, one in zip(weights, several, strict=True)) for n in start
            }
            loss = problem.valid_loss(ModuleAt(setup, mean), meta, valid)
            return [scale * part for part in torch.autograd.grad(loss, leaves)]

        return call

    return Contender(build, random=True)


def conjugate_gradient_by_hand(iterations: int, tolerance: float = 0.0) -> Contender:
    """Implicit differentiation at the optimum: conjugate gradient on double backward.

    Args:
        iterations: Number of iterations at most.
        tolerance: Relative residual at which it stops.
    """

    def build(setup: Setup) -> Call:
        ((batches, valid),) = setup.tasks
        problem, meta, leaves = setup.problem, setup.problem.meta, setup.leaves
        start = {name: p.detach().requires_grad_() for name, p in setup.state.parameters.items()}
        values = list(start.values())

        def call() -> Sequence[Tensor]:
            model = ModuleAt(setup, start)
            slopes = torch.autograd.grad(
                problem.train_loss(model, meta, batches[0]), values, create_graph=True
            )
            outer = torch.autograd.grad(problem.valid_loss(model, meta, valid), values)

            def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
                return torch.autograd.grad(slopes, values, vector, retain_graph=True)

            def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
                return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()

            solution = [torch.zeros_like(b) for b in outer]
            residual, direction = list(outer), list(outer)
            size = first = dot(residual, residual)
            for _ in range(iterations):
                image = product(direction)
                share = size / dot(direction, image)
                solution = [x + share * d for x, d in zip(solution, direction, strict=True)]
                residual = [r - share * i for r, i in zip(residual, image, strict=True)]
                former, size = size, dot(residual, residual)
                if size <= tolerance**2 * first:
                    break
                ahead = size / former
                direction = [r + ahead * d for r, d in zip(residual, direction, strict=True)]
            return [-part for part in torch.autograd.grad(slopes, leaves, solution)]

        return call

    return Contender(build)
