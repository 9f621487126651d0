"""Many calls of an estimator: memory, copies, checkpoints."""

from __future__ import annotations

import contextlib
import copy
import gc
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError, UnusedMetaParameterError
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.estimators.calls import call
from metatoolkit.testing.expectations import (
    Inapplicable,
    expect,
    expect_equal,
    expect_resumable,
    stored,
)
from metatoolkit.training import MetaTrainer

SUITE: Suite[Estimator] = Suite("estimator", Estimator)


@SUITE.check()
def memory_does_not_grow(make: Make[Estimator]) -> None:
    """Further calls leave neither more tensors alive nor larger ones, with no collection between.

    Calls are compared with as many before them, since the first ones may fill caches.
    """
    pairs = []
    for build in bank.CONFORMANCE.values():
        instance, estimator = build(), make()
        with contextlib.suppress(UnsupportedError, UnusedMetaParameterError):
            instance.call(estimator)
            pairs.append((instance, estimator, instance.state))
    if not pairs:
        raise Inapplicable("unsupported: every problem of the bank")
    counts = []
    gc.collect()
    gc.disable()
    try:
        for calls in (2, 1, 1):
            for instance, estimator, state in pairs:
                for _ in range(calls):
                    instance.call(estimator, state)
            alive = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
            counts.append((len(alive), sum(tensor.nbytes for tensor in alive)))
            del alive
    finally:
        gc.enable()
    texts = [f"{number} tensors of {size} bytes alive" for number, size in counts]
    expect(counts[1] == counts[2], f"{texts[1]} as after fewer calls", texts[2])


@SUITE.check()
def can_be_copied(make: Make[Estimator]) -> None:
    """A copy and a duplicate return what the estimator does."""
    estimator, instance = make(), bank.ridge()
    wanted = call(instance, make()).gradient["value"]
    others = {"copied": copy.deepcopy(estimator), "duplicated": estimator.duplicate()}
    for name, other in others.items():
        found = call(instance, other).gradient["value"]
        expect_equal(f"the gradient of the {name} estimator", found, wanted)


@SUITE.check()
def can_be_pickled(make: Make[Estimator]) -> None:
    """An estimator that was stored returns what it did."""
    instance = bank.ridge()
    wanted = call(instance, make()).gradient["value"]
    found = call(instance, stored(make())).gradient["value"]
    expect_equal("the gradient of the stored estimator", found, wanted)


@SUITE.check()
def training_goes_on_bitwise_from_a_checkpoint(make: Make[Estimator]) -> None:
    """Three steps, a checkpoint and three more are six steps."""
    expect_resumable("the model or of meta", partial(_train, make), 3, 6)


def _train(make: Make[Estimator], path: Path, steps: int, resume: bool) -> list[Tensor]:
    """Train on the small network, and return all tensors of model and meta."""
    instance = bank.small_net()
    problem = instance.problem
    optimizer = torch.optim.Adam(problem.meta.parameters(), lr=0.01)
    trainer = MetaTrainer(problem, instance.inner, make(), optimizer)
    trainer.fit(
        instance.train_batches,
        [instance.valid_batch],
        steps,
        checkpoint=path,
        resume=resume,
        progress=False,
    )
    return [*problem.model.state_dict().values(), *problem.meta.parameters()]
