"""Copies of an inner learner, stored states, checkpoints."""

from __future__ import annotations

import copy
import io
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metatoolkit.inner.base import InnerLearner
from metatoolkit.state import InnerState
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.expectations import expect_equal, expect_resumable, stored
from metatoolkit.testing.inner_learners.calls import build, take
from metatoolkit.training import MetaTrainer

SUITE: Suite[InnerLearner] = Suite("inner learner", InnerLearner)
_PROBLEM = "matrices"


@SUITE.check()
def can_be_copied(make: Make[InnerLearner]) -> None:
    """A copy takes the same steps."""
    instance = build(_PROBLEM, make)
    wanted = take(instance, instance.state, instance.batches(3))
    instance.inner = copy.deepcopy(make())
    _expect_same(take(instance, instance.state, instance.batches(3)), wanted, "copied learner")


@SUITE.check()
def can_be_pickled(make: Make[InnerLearner]) -> None:
    """A learner that was stored takes the same steps."""
    instance = build(_PROBLEM, make)
    wanted = take(instance, instance.state, instance.batches(3))
    instance.inner = stored(make())
    _expect_same(take(instance, instance.state, instance.batches(3)), wanted, "stored learner")


@SUITE.check()
def a_stored_state_goes_on_bitwise(make: Make[InnerLearner]) -> None:
    """Three steps are one, a state that is written and read, and two more."""
    instance = build(_PROBLEM, make)
    batches = instance.batches(3)
    wanted = take(instance, instance.state, batches)
    file = io.BytesIO()
    torch.save(take(instance, instance.state, batches[:1]).state_dict(), file)
    file.seek(0)
    state = InnerState.from_state_dict(torch.load(file, weights_only=True))
    _expect_same(take(instance, state, batches[1:]), wanted, "learner from a stored state")


@SUITE.check()
def training_goes_on_bitwise_from_a_checkpoint(make: Make[InnerLearner]) -> None:
    """Two steps, a checkpoint and three more are five steps."""
    expect_resumable("the model", partial(_train, make), 2, 5)


def _train(make: Make[InnerLearner], path: Path, steps: int, resume: bool) -> list[Tensor]:
    instance = build(_PROBLEM, make)
    trainer = MetaTrainer(instance.problem, instance.inner)
    trainer.fit(instance.train_batches, steps=steps, checkpoint=path, resume=resume, progress=False)
    return list(instance.problem.model.state_dict().values())


def _expect_same(found: InnerState, wanted: InnerState, what: str) -> None:
    for one, other in zip(found.tensors(), wanted.tensors(), strict=True):
        expect_equal(f"a tensor of the state of the {what}", one, other)
