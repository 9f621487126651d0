"""Second-order Meta-Weight-Net through learn2learn's ``clone`` and ``adapt``.

An independent implementation of the one-step hypergradient, for plain SGD as the inner learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, optional_import
from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient, fill_gradients
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.sgd import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import seeded
from metatoolkit.state import InnerState, Tensors


class Learn2LearnSecondOrder(Estimator):
    """The exact one-step hypergradient, computed by learn2learn's MAML wrapper.

    It answers to the interface of the toolkit's estimators, so that the trainer runs it as it is.
    Cost: as :class:`metatoolkit.hypergradients.Unrolled` with one step, with the model copied.

    Raises:
        MissingDependencyError: learn2learn is not installed.
    """

    def __init__(self) -> None:
        with optional_import("Learn2LearnSecondOrder"):
            import learn2learn
        self._maml = learn2learn.algorithms.MAML

    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the one-step hypergradient of plain SGD.

        Args:
            problem: The bilevel problem.
            inner: ``SGD`` whose learning rate is a number; momentum and decay are not looked at,
                since learn2learn's inner step has neither.
            state: State to start from, returned as it is.
            train_batches: One training batch.
            valid_batch: Batch for the outer loss.

        Raises:
            ConfigurationError: The inner learner is not SGD with a number as learning rate.
        """
        rate = inner.hyperparameters.get("lr") if isinstance(inner, SGD) else None
        if callable(rate):
            rate = rate(problem.meta, state.step)
        if not isinstance(rate, int | float):
            raise ConfigurationError(
                "learn2learn's inner step is plain SGD with a number as learning rate; give "
                "SGD(lr=...), or use metatoolkit's Unrolled."
            )
        original = InnerState(problem.parameters(), problem.buffers(), {}, 0, 0)
        problem.load(state)
        devices = {tensor.device for tensor in state.parameters.values()}
        live = list(problem.meta_parameters().values())
        try:
            with seeded(state.key, devices):
                learner = self._maml(problem.model, lr=rate, first_order=False).clone()
                learner.adapt(problem.train_loss(learner, problem.meta, train_batches[0]))
                loss = problem.valid_loss(learner, problem.meta, valid_batch)
            gradients = torch.autograd.grad(loss, live, allow_unused=True)
        finally:
            problem.load(original)
        named = dict(zip(problem.meta_parameter_names, gradients, strict=True))
        return Hypergradient(
            gradient=fill_gradients(problem, named, "train_loss and valid_loss"),
            valid_loss=loss.detach(),
            state=state,
            cost=Cost(forward=2, backward=2, hvp=1),
        )

    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the outer loss after one inner step, as ``Unrolled`` defines it.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State to start from.
            train_batches: One training batch.
            valid_batch: Batch for the outer loss.
            meta: Meta-parameters by name.
        """
        from metatoolkit.hypergradients.unrolled import Unrolled

        return Unrolled(1).objective(problem, inner, state, train_batches, valid_batch, meta)
