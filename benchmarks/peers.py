"""Peers as estimators of ours, so that one comparison measures all of them alike."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import Cost, Estimator, Hypergradient, Traits
from metatoolkit.inner import SGD, InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.state import InnerState, Tensors


def installed(module: str) -> bool:
    """Tell whether a peer can be imported.

    Args:
        module: Name of its module.
    """
    return importlib.util.find_spec(module) is not None


class Peer(Estimator):
    """Reverse mode through plain SGD by another library, from a private copy of the problem.

    The copy is made before the measured call where it can be; hyper-parameters must be numbers.

    Args:
        steps: Number of inner steps.
    """

    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="plain SGD",
        passes="as the library has it",
        memory="the graph of all steps",
        paper="a peer",
    )

    def __init__(self, steps: int = 1) -> None:
        self.horizon = steps

    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the peer's hypergradient.

        Args:
            problem: The bilevel problem.
            inner: Plain SGD.
            state: State to start from.
            train_batches: Training batches.
            valid_batch: Batch for the outer loss.
        """
        if not isinstance(inner, SGD) or inner.has_momentum or inner.groups:
            raise UnsupportedError("peers are compared on plain SGD alone.")
        lr = inner.hyperparameters["lr"]
        if not isinstance(lr, float):
            raise UnsupportedError("peers are compared on a fixed learning rate alone.")
        own = copy.deepcopy(problem)
        own.load(state)
        with seeded(fold_in(state.key, state.step)):
            loss, gradients = self.run(own, lr, train_batches, valid_batch)
        names = own.meta_parameter_names
        return Hypergradient(
            gradient=dict(zip(names, gradients, strict=True)),
            valid_loss=loss,
            state=state,
            cost=Cost(forward=self.horizon + 1, backward=self.horizon + 1, hvp=self.horizon),
        )

    def run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the outer loss and its gradient in λ.

        Args:
            problem: A copy that may be changed.
            lr: Learning rate of the inner steps.
            train_batches: Training batches.
            valid_batch: Batch for the outer loss.
        """
        raise NotImplementedError

    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Refuse: peers are measured, not checked.

        Args:
            problem: Not used.
            inner: Not used.
            state: Not used.
            train_batches: Not used.
            valid_batch: Not used.
            meta: Not used.
        """
        raise UnsupportedError("a peer has no objective of its own; check Unrolled instead.")


class Higher(Peer):
    """higher's ``innerloop_ctx``."""

    def run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See :meth:`Peer.run`.

        Args:
            problem: A copy that may be changed.
            lr: Learning rate of the inner steps.
            train_batches: Training batches.
            valid_batch: Batch for the outer loss.
        """
        import higher

        optimizer = torch.optim.SGD(problem.model.parameters(), lr=lr)
        with higher.innerloop_ctx(problem.model, optimizer) as (model, inner):
            for batch in train_batches:
                inner.step(problem.train_loss(model, problem.meta, batch))
            loss = problem.valid_loss(model, problem.meta, valid_batch)
            gradients = torch.autograd.grad(loss, list(problem.meta.parameters()))
        return loss.detach(), gradients


class TorchOpt(Peer):
    """TorchOpt's ``MetaSGD``."""

    def run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See :meth:`Peer.run`.

        Args:
            problem: A copy that may be changed.
            lr: Learning rate of the inner steps.
            train_batches: Training batches.
            valid_batch: Batch for the outer loss.
        """
        import torchopt

        optimizer = torchopt.MetaSGD(problem.model, lr=lr)
        for batch in train_batches:
            optimizer.step(problem.train_loss(problem.model, problem.meta, batch))
        loss = problem.valid_loss(problem.model, problem.meta, valid_batch)
        return loss.detach(), torch.autograd.grad(loss, list(problem.meta.parameters()))
