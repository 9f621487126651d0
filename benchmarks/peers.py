"""Peers as estimators of ours, so that one comparison measures all of them alike."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baselines.peer import Peer, Result
from metatoolkit.errors import UnsupportedError
from metatoolkit.inner import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


def installed(module: str) -> bool:
    """Tell whether a peer can be imported.

    Args:
        module: Name of its module.
    """
    return importlib.util.find_spec(module) is not None


def higher_hypergradient(
    problem: BilevelProblem,
    train_batches: Sequence[Any],
    valid_batch: Any,
    lr: float,
    momentum: float = 0.0,
) -> Result:
    """Return the hypergradient through a trajectory of SGD by higher.

    Args:
        problem: The bilevel problem, from whose parameters the steps start; it stays as it is.
        train_batches: One training batch per inner step.
        valid_batch: Batch for the outer loss.
        lr: Learning rate of the inner steps.
        momentum: Momentum of the inner steps.
    """
    import higher

    optimizer = torch.optim.SGD(problem.model.parameters(), lr=lr, momentum=momentum)
    with higher.innerloop_ctx(problem.model, optimizer) as (model, inner):
        for batch in train_batches:
            inner.step(problem.train_loss(model, problem.meta, batch))
        loss = problem.valid_loss(model, problem.meta, valid_batch)
        gradients = torch.autograd.grad(loss, list(problem.meta.parameters()))
    return loss.detach(), gradients


def torchopt_hypergradient(
    problem: BilevelProblem,
    train_batches: Sequence[Any],
    valid_batch: Any,
    lr: float,
    momentum: float = 0.0,
) -> Result:
    """Return the hypergradient through a trajectory of SGD by TorchOpt.

    Args:
        problem: The bilevel problem, from whose parameters the steps start; the steps change its
            model in place.
        train_batches: One training batch per inner step.
        valid_batch: Batch for the outer loss.
        lr: Learning rate of the inner steps.
        momentum: Momentum of the inner steps.
    """
    import torchopt

    optimizer = torchopt.MetaSGD(problem.model, lr=lr, momentum=momentum)
    for batch in train_batches:
        optimizer.step(problem.train_loss(problem.model, problem.meta, batch))
    loss = problem.valid_loss(problem.model, problem.meta, valid_batch)
    return loss.detach(), torch.autograd.grad(loss, list(problem.meta.parameters()))


class Higher(Peer):
    """higher's ``innerloop_ctx``."""

    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        return higher_hypergradient(problem, train_batches, valid_batch, lr)


class TorchOpt(Peer):
    """TorchOpt's ``MetaSGD``."""

    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        return torchopt_hypergradient(problem, train_batches, valid_batch, lr)


class ImplicitPeer(Peer):
    """The implicit hypergradient by another library, for its fixed point at the given state.

    Args:
        method: Name of the library's function.
        iterations: Iterations of its solver.
        scale: Its step size, where it has one.
    """

    def __init__(self, method: str, iterations: int = 50, scale: float = 1.0) -> None:
        super().__init__(1)
        self.method = method
        self.iterations = iterations
        self.scale = scale

    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Refuse: a fixed point is not the state after the inner steps.

        Args:
            problem: Not used.
            inner: Not used.
            state: Not used.
            train_batches: Not used.
            valid_batch: Not used.
            meta: Not used.
        """
        raise UnsupportedError("this peer has no objective of its own; check Implicit instead.")


class Betty(ImplicitPeer):
    """A function of ``betty.hypergradient``, called with the two problems that it reads."""

    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        del lr  # Betty differentiates the minimum of the training loss
        function = getattr(
            importlib.import_module(f"betty.hypergradient.{self.method}"), self.method
        )
        model, meta = problem.model, problem.meta
        parameters, leaves = list(model.parameters()), list(meta.parameters())
        config = types.SimpleNamespace(
            cg_iterations=self.iterations,
            cg_alpha=self.scale,
            neumann_iterations=self.iterations,
            neumann_alpha=self.scale,
            darts_alpha=self.scale,
        )
        lower = types.SimpleNamespace(
            paths=[],
            config=config,
            cur_batch=train_batches[0],
            training_step_exec=lambda batch: problem.train_loss(model, meta, batch),
            parameters=lambda: parameters,
            trainable_parameters=lambda: parameters,
        )
        upper = types.SimpleNamespace(trainable_parameters=lambda: leaves)
        loss = problem.valid_loss(model, meta, valid_batch)
        gradients = torch.autograd.grad(loss, [*parameters, *leaves], allow_unused=True)
        vector, direct = gradients[: len(parameters)], gradients[len(parameters) :]
        implicit = function(vector, lower, upper)
        return loss.detach(), [
            part if own is None else part + own for part, own in zip(implicit, direct, strict=True)
        ]


class Hypertorch(ImplicitPeer):
    """A function of hypertorch's ``hypergrad``, on the map of one plain gradient step."""

    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        import hypergrad

        names, meta_names = problem.parameter_names, problem.meta_parameter_names
        buffers = problem.buffers()

        def named(values: Sequence[Tensor], keys: Sequence[str]) -> Tensors:
            return dict(zip(keys, values, strict=True))

        def fixed_point_map(parameters: list[Tensor], meta: list[Tensor]) -> list[Tensor]:
            loss, _ = problem.evaluate_train(
                named(parameters, names), named(meta, meta_names), buffers, train_batches[0], 0
            )
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            return [p - lr * g for p, g in zip(parameters, gradients, strict=True)]

        def outer_loss(parameters: list[Tensor], meta: list[Tensor]) -> Tensor:
            return problem.evaluate_valid(
                named(parameters, names), named(meta, meta_names), buffers, valid_batch, 0
            )

        point = [tensor.requires_grad_() for tensor in problem.parameters().values()]
        leaves = list(problem.meta_leaves().values())
        function = getattr(hypergrad, self.method)
        gradients = function(
            point, leaves, self.iterations, fixed_point_map, outer_loss, set_grad=False
        )
        return outer_loss(point, leaves).detach(), gradients
