"""An outer step that is cut short: what it knows of itself."""

import pytest
import torch

from metatoolkit.batch_stream import BatchStream
from metatoolkit.hypergradients import Unrolled
from metatoolkit.training.outer_step import OuterStep
from tests import bank
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


@pytest.mark.parametrize("state", [{"place": 0}, {"deep": {"place": 0}}])
def test_the_places_before_a_step_are_copies(state):
    case = bank.small_net()
    trainer = trainer_of(case, None)
    streams = {"train_batches": BatchStream("train_batches", Live(case.train_batches, state))}
    step = OuterStep(trainer, streams, keeps_places=True)
    step.finish(trainer)
    place = step.places["train_batches"]
    assert place["taken"] == 0
    assert place["batches"] in ({"place": 0}, {"deep": {"place": 0}})
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
