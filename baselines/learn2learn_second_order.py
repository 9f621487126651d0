"""Second-order Meta-Weight-Net through learn2learn's ``clone`` and ``adapt``.

An independent implementation of the one-step hypergradient, for plain SGD as the inner learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from baselines.peer import Peer, Result
from metatoolkit.errors import optional_import
from metatoolkit.hypergradients import Cost
from metatoolkit.problem import BilevelProblem


class Learn2LearnSecondOrder(Peer):
    """The exact one-step hypergradient, computed by learn2learn's MAML wrapper.

    Cost: as :class:`metatoolkit.hypergradients.Unrolled` with one step, with the model copied.

    Raises:
        MissingDependencyError: learn2learn is not installed.
    """

    cost = Cost(forward=2, backward=2, hvp=1)

    def __init__(self) -> None:
        super().__init__(steps=1)
        with optional_import("Learn2LearnSecondOrder"):
            import learn2learn
        self._maml = learn2learn.algorithms.MAML

    @override
    def _run(
        self, problem: BilevelProblem, lr: float, train_batches: Sequence[Any], valid_batch: Any
    ) -> Result:
        learner = self._maml(problem.model, lr=lr, first_order=False).clone()
        learner.adapt(problem.train_loss(learner, problem.meta, train_batches[0]))
        loss = problem.valid_loss(learner, problem.meta, valid_batch)
        live = list(problem.meta_parameters().values())
        return loss.detach(), torch.autograd.grad(loss, live, allow_unused=True)
