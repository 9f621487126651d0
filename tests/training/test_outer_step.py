"""An outer step that is cut short: what it knows of itself."""

import copy

import pytest
import torch

from metatoolkit.hypergradients import Unrolled
from metatoolkit.testing import bank
from metatoolkit.training.batch_stream import BatchStream
from metatoolkit.training.outer_step import OuterStep
from tests.training.assembled import trainer_of


class Live:
    """Batches that return the very dictionary that they go on with."""

    def __init__(self, batches, state):
        self.batches, self.state = batches, state

    def __iter__(self):
        return self

    def __next__(self):
        place = self.state["deep"] if "deep" in self.state else self.state
        place["place"] += 1
        return self.batches[(place["place"] - 1) % len(self.batches)]

    def state_dict(self):
        return self.state

    def load_state_dict(self, saved):
        self.state = saved


STATES = [{"place": 0}, {"deep": {"place": 0}}, {"size": 3, "deep": {"place": 0}}]


@pytest.mark.parametrize("state", STATES)
def test_the_places_before_a_step_are_copies(state):
    case, before = bank.small_net(), copy.deepcopy(state)
    trainer = trainer_of(case, None)
    streams = {"train_batches": BatchStream("train_batches", Live(case.train_batches, state))}
    step = OuterStep(trainer, streams, keeps_places=True)
    step.finish(trainer)
    place = step.places["train_batches"]
    assert place["taken"] == 0
    assert place["batches"] == before != state
    assert streams["train_batches"].state_dict()["taken"] == 1
    assert OuterStep(trainer, streams, keeps_places=False).places == {}


@pytest.mark.parametrize("order", ["meta_first", "inner_first"])
def test_what_is_done_is_not_done_again(order):
    case = bank.small_net()
    trainer = trainer_of(case, Unrolled(2), order=order)
    streams = {
        "train_batches": BatchStream("train_batches", case.train_batches),
        "valid_batches": BatchStream("valid_batches", [case.valid_batch]),
    }
    step = OuterStep(trainer, streams, keeps_places=False)
    metrics = step.finish(trainer)
    meta = [parameter.detach().clone() for parameter in case.problem.meta.parameters()]
    state = trainer.state
    again = OuterStep(trainer, streams, keeps_places=False)
    again.load_state_dict(step.state_dict(), torch.device("cpu"))
    assert again.finish(trainer) == metrics
    assert trainer.state is state
    assert all(map(torch.equal, meta, case.problem.meta.parameters()))


def streams_of(case, drawn):
    def noted(name, batches):
        for batch in batches * 9:
            drawn.append(name)
            yield batch

    return {
        "train_batches": BatchStream("train_batches", noted("train", case.train_batches)),
        "valid_batches": BatchStream("valid_batches", noted("valid", [case.valid_batch])),
    }


def test_batches_are_drawn_task_by_task():
    case, drawn, placed = bank.small_net(), [], []
    trainer = trainer_of(case, Unrolled(2), accumulate=2, meta_every=2)
    trainer.place = lambda batch: placed.append(batch) or batch
    streams = streams_of(case, drawn)
    OuterStep(trainer, streams, keeps_places=False).finish(trainer)
    assert drawn == ["train", "train", "valid"] * 2
    assert len(placed) == 6
    trainer.steps_done, placed[:] = 1, []
    OuterStep(trainer, streams, keeps_places=False).finish(trainer)
    # Where λ rests, a validation batch is drawn and goes nowhere.
    assert drawn == ["train", "train", "valid"] * 4
    assert len(placed) == 4 and all(batch is not case.valid_batch for batch in placed)


def test_without_an_estimator_one_batch_is_drawn_for_each_step():
    case, drawn = bank.small_net(), []
    trainer = trainer_of(case, None)
    metrics = OuterStep(trainer, streams_of(case, drawn), keeps_places=False).finish(trainer)
    assert drawn == ["train"] and metrics.keys() == {"train_loss"} and trainer.state.step == 1


def test_what_was_done_is_taken_to_the_device_of_the_training():
    case = bank.small_net()
    trainer = trainer_of(case, Unrolled(2))
    step = OuterStep(trainer, streams_of(case, []), keeps_places=False)
    step.finish(trainer)
    saved = step.state_dict()
    assert saved["moved"] is True and len(saved["losses"]) == 2
    assert saved["metrics"].keys() == {"train_loss", "valid_loss", "hypergradient_norm"}
    again = OuterStep(trainer, {}, keeps_places=False)
    assert again.state_dict() == {"moved": False, "losses": [], "metrics": {}}
    again.load_state_dict(saved, torch.device("meta"))
    found = again.state_dict()
    held = [*found["losses"], *found["metrics"].values()]
    assert len(held) == 5 and {tensor.device.type for tensor in held} == {"meta"}
