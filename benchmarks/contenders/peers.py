"""Other libraries as contenders; each is imported only where it is built."""

from __future__ import annotations

import copy
import importlib
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders.by_hand import ModuleAt, mean_over_tasks
from benchmarks.harness.declared import Call, Contender, Setup


def _placed(setup: Setup) -> Any:
    """Return a copy of the model at the state that all start from; the model itself for λ."""
    if setup.begins_with_meta:
        return setup.problem.model
    model = copy.deepcopy(setup.problem.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(setup.state.parameters[name])
    return model


def _higher(setup: Setup) -> Call:
    import higher

    problem, meta, leaves, model = setup.problem, setup.problem.meta, setup.leaves, _placed(setup)
    optimizer = torch.optim.SGD(
        model.parameters(), setup.lr, setup.momentum, weight_decay=setup.weight_decay
    )

    def one(batches: Sequence[Any], valid: Any) -> Sequence[Tensor]:
        context = higher.innerloop_ctx(
            model, optimizer, copy_initial_weights=not setup.begins_with_meta
        )
        with context as (fast, inner):
            for batch in batches:
                inner.step(problem.train_loss(fast, meta, batch))
            return torch.autograd.grad(problem.valid_loss(fast, meta, valid), leaves)

    return lambda: mean_over_tasks(setup, one)


def higher() -> Contender:
    """Unroll SGD by higher's ``innerloop_ctx``."""
    return Contender(_higher, "higher")


def _torchopt(setup: Setup) -> Call:
    import torchopt

    # Its steps change the module, whose tensors are put back after each task.
    problem, meta, model = setup.problem, setup.problem.meta, copy.deepcopy(_placed(setup))
    leaves = list(model.parameters()) if setup.begins_with_meta else setup.leaves
    optimizer = torchopt.MetaSGD(
        model, lr=setup.lr, momentum=setup.momentum, weight_decay=setup.weight_decay
    )
    start = [torchopt.extract_state_dict(part, by="reference") for part in (model, optimizer)]

    def one(batches: Sequence[Any], valid: Any) -> Sequence[Tensor]:
        for batch in batches:
            optimizer.step(problem.train_loss(model, meta, batch))
        found = torch.autograd.grad(problem.valid_loss(model, meta, valid), leaves)
        for part, state in zip((model, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, state)
        return found

    return lambda: mean_over_tasks(setup, one)


def torchopt() -> Contender:
    """Unroll SGD by TorchOpt's ``MetaSGD``."""
    return Contender(_torchopt, "torchopt")


def _learn2learn(setup: Setup) -> Call:
    import learn2learn

    problem, meta = setup.problem, setup.problem.meta
    maml = learn2learn.algorithms.MAML(problem.model, lr=setup.lr, first_order=False)
    leaves = list(maml.parameters())

    def one(batches: Sequence[Any], valid: Any) -> Sequence[Tensor]:
        learner = maml.clone()
        for batch in batches:
            learner.adapt(problem.train_loss(learner, meta, batch))
        return torch.autograd.grad(problem.valid_loss(learner, meta, valid), leaves)

    return lambda: mean_over_tasks(setup, one)


def learn2learn() -> Contender:
    """Adapt by learn2learn's ``MAML``, where λ is where steps start."""
    return Contender(_learn2learn, "learn2learn")


def betty(method: str, iterations: int = 50, scale: float = 1.0) -> Contender:
    """Call a function of ``betty.hypergradient`` with the two problems that it reads.

    Args:
        method: Name of the function.
        iterations: Iterations of its solver.
        scale: Its step size, where it has one.
    """

    def build(setup: Setup) -> Call:
        function = getattr(importlib.import_module(f"betty.hypergradient.{method}"), method)
        ((batches, valid),) = setup.tasks
        problem, meta, leaves, model = (
            setup.problem,
            setup.problem.meta,
            setup.leaves,
            _placed(setup),
        )
        parameters = list(model.parameters())
        config = types.SimpleNamespace(
            cg_iterations=iterations,
            cg_alpha=scale,
            neumann_iterations=iterations,
            neumann_alpha=scale,
            darts_alpha=scale,
        )
        lower = types.SimpleNamespace(
            paths=[],
            config=config,
            cur_batch=batches[0],
            training_step_exec=lambda batch: problem.train_loss(model, meta, batch),
            parameters=lambda: parameters,
            trainable_parameters=lambda: parameters,
        )
        upper = types.SimpleNamespace(trainable_parameters=lambda: leaves)

        def call() -> Sequence[Tensor]:
            loss = problem.valid_loss(model, meta, valid)
            found = torch.autograd.grad(loss, [*parameters, *leaves], allow_unused=True)
            vector, direct = found[: len(parameters)], found[len(parameters) :]
            implicit = function(vector, lower, upper)
            pairs = zip(implicit, direct, strict=True)
            return [part if own is None else part + own for part, own in pairs]

        return call

    return Contender(build, "betty")


def hypertorch(method: str, iterations: int) -> Contender:
    """Call a function of hypertorch's ``hypergrad`` on the map of one plain gradient step.

    Args:
        method: Name of the function.
        iterations: Iterations of its solver.
    """

    def build(setup: Setup) -> Call:
        import hypergrad

        function = getattr(hypergrad, method)
        ((batches, valid),) = setup.tasks
        problem, meta, leaves = setup.problem, setup.problem.meta, setup.leaves
        start = setup.state.parameters
        point = [p.detach().clone().requires_grad_() for p in start.values()]

        # The library differentiates in the tensors of λ themselves.
        def fixed_point_map(parameters: list[Tensor], _: Any) -> list[Tensor]:
            model = ModuleAt(setup, dict(zip(start, parameters, strict=True)))
            loss = problem.train_loss(model, meta, batches[0])
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            return [p - setup.lr * g for p, g in zip(parameters, slopes, strict=True)]

        def outer_loss(parameters: list[Tensor], _: Any) -> Tensor:
            model = ModuleAt(setup, dict(zip(start, parameters, strict=True)))
            return problem.valid_loss(model, meta, valid)

        def call() -> Sequence[Tensor]:
            return function(point, leaves, iterations, fixed_point_map, outer_loss, set_grad=False)

        return call

    return Contender(build, "hypergrad")
