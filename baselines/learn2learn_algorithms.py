"""MAML, FOMAML, Reptile, ANIL and Meta-SGD by learn2learn, on the tasks that ours learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from baselines.peer import Peer, Result
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.inner import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState
from metatoolkit.tasks.learn2learn_import import import_learn2learn


class Learn2LearnAlgorithm(Peer):
    """The gradient of one task by learn2learn, for what ``metatoolkit.algorithms`` builds.

    λ is the algorithm's ``meta``: the gradient in ``"initialization"`` and ``"shared"`` is that in
    the parameters of learn2learn's model, the gradient in ``"rates"`` that in its ``lrs``. Reptile,
    which learn2learn has as an example alone, is its first-order clone, adapted, and the way back:
    θ_0 − θ_T. Cost: as learn2learn has it, with the model copied.

    Args:
        name: ``"maml"``, ``"fomaml"``, ``"reptile"``, ``"anil"`` or ``"meta_sgd"`` with rates per
            coordinate.
        steps: Number of inner steps.

    Raises:
        UnknownNameError: learn2learn has no such algorithm.
        ConfigurationError: ``steps`` is below 1.
        MissingDependencyError: learn2learn is not installed.
    """

    names = ("maml", "fomaml", "reptile", "anil", "meta_sgd")

    def __init__(self, name: str, steps: int) -> None:
        if name not in self.names:
            raise UnknownNameError("algorithm of learn2learn", name, self.names)
        if steps < 1:
            raise ConfigurationError(f"steps is {steps}; at least 1 inner step is needed.")
        super().__init__(steps)
        self.name = name
        self._algorithms = import_learn2learn("Learn2LearnAlgorithm").algorithms

    @override
    def _rate(self, problem: BilevelProblem, inner: InnerLearner, state: InnerState) -> Any:
        return 0.0 if self.name == "meta_sgd" else super()._rate(problem, inner, state)

    @override
    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        model, meta = problem.model, problem.meta
        live = [_place(model, meta, name) for name in problem.meta_parameter_names]
        learner, adapts = self._learner(problem, lr)
        for batch in train_batches:
            adapts.adapt(problem.train_loss(learner, meta, batch))
        loss = problem.valid_loss(learner, meta, valid_batch)
        if self.name == "reptile":
            ends = {n.removeprefix("module."): end for n, end in learner.named_parameters()}
            starts = dict(zip(problem.meta_parameter_names, live, strict=True))
            way = [start - ends[name.partition(".")[2]] for name, start in starts.items()]
            return loss.detach(), [tensor.detach() for tensor in way]
        return loss.detach(), torch.autograd.grad(loss, live, allow_unused=True)

    def _learner(self, problem: BilevelProblem, lr: float) -> tuple[nn.Module, Any]:
        """Return what maps inputs to outputs, and the part of it that adapts."""
        model, meta = problem.model, problem.meta
        if self.name == "meta_sgd":
            rates = [meta.get_parameter(f"rates.{name}") for name, _ in model.named_parameters()]
            learner = self._algorithms.MetaSGD(model, lrs=rates).clone()
            return learner, learner
        first_order = self.name in ("fomaml", "reptile")
        if self.name != "anil":
            learner = self._algorithms.MAML(model, lr, first_order=first_order).clone()
            return learner, learner
        (path,) = {name.rpartition(".")[0] for name in problem.parameter_names}
        head = self._algorithms.MAML(model.get_submodule(path), lr).clone()
        model.set_submodule(path, head)
        return model, head


def _place(model: nn.Module, meta: nn.Module, name: str) -> nn.Parameter:
    """Return the tensor in which learn2learn differentiates, by its name in λ."""
    part, _, rest = name.partition(".")
    return meta.get_parameter(name) if part == "rates" else model.get_parameter(rest)
