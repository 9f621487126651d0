"""Batches on a device: torch's meta device stands for one that is elsewhere."""

import collections
import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from metatoolkit.errors import DataError
from metatoolkit.testing import bank
from metatoolkit.training.placement import placed
from tests.training.assembled import trainer_of

ELSEWHERE = torch.device("meta")
ONES = torch.ones(2, 3)

Named = collections.namedtuple("Named", ["inputs", "targets"])


@dataclasses.dataclass
class Batch:
    inputs: Any
    targets: Any = None
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    inputs: Any
    size: int = dataclasses.field(init=False, default=2)


class Returning:
    """Moves itself as a tensor does."""

    def __init__(self, inputs):
        self.inputs = inputs

    def to(self, device):
        return type(self)(self.inputs.to(device))


class InPlace:
    """Moves itself in place and returns nothing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def to(self, device):
        self.inputs = self.inputs.to(device)


class Plain:
    """Holds what nobody knows how to move."""

    def __init__(self, inputs):
        self.inputs = inputs


class Slotted:
    __slots__ = ("inputs",)

    def __init__(self, inputs):
        self.inputs = inputs


class Single:
    __slots__ = "inputs"

    def __init__(self, inputs):
        self.inputs = inputs


class Special(dict):
    pass


class Listed(list):
    pass


@pytest.mark.parametrize(
    ("batch", "read"),
    [
        (ONES, lambda b: [b]),
        ((ONES, [ONES, {"x": ONES}]), lambda b: [b[0], b[1][0], b[1][1]["x"]]),
        (Named(ONES, ONES), lambda b: [b.inputs, b.targets]),
        (Batch(ONES, {"y": Batch(ONES)}), lambda b: [b.inputs, b.targets["y"].inputs]),
        (Frozen(ONES), lambda b: [b.inputs]),
        ([Returning(ONES)], lambda b: [b[0].inputs]),
        ({"x": InPlace(ONES)}, lambda b: [b["x"].inputs]),
        (Special(x=ONES, y=[ONES]), lambda b: [b["x"], b["y"][0]]),
        (Listed([ONES]), lambda b: [b[0]]),
        (collections.UserDict(x=ONES), lambda b: [b["x"]]),
        (collections.OrderedDict(x=ONES), lambda b: [b["x"]]),
        (collections.deque([ONES]), lambda b: [b[0]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_tensor_of_a_batch_is_moved_and_the_given_one_stays(batch, read):
    before = copy.deepcopy(batch)
    found = placed(batch, ELSEWHERE)
    assert type(found) is type(batch)
    assert all(tensor.device == ELSEWHERE for tensor in read(found))
    assert all(tensor.device.type == "cpu" for tensor in read(batch))
    for one, other in zip(read(batch), read(before), strict=True):
        assert torch.equal(one, other)


def test_what_holds_no_tensor_stays():
    array = np.ones(2)
    batch = (None, 3, "text", array, Batch(None, count=4), Plain([1, 2]), len)
    found = placed(batch, ELSEWHERE)
    assert found[:3] == (None, 3, "text") and found[3] is array
    assert found[4] == batch[4] and found[5] is batch[5] and found[6] is len
    assert placed(None, ELSEWHERE) is None
    assert placed(Frozen(ONES), ELSEWHERE).size == 2


def test_a_packed_sequence_keeps_its_lengths_on_the_cpu():
    packed = pack_sequence([torch.ones(3), torch.ones(2)], enforce_sorted=False)
    found = placed({"words": packed}, ELSEWHERE)["words"]
    assert isinstance(found, PackedSequence)
    assert found.data.device == ELSEWHERE and found.batch_sizes.device.type == "cpu"
    assert found.sorted_indices.device == ELSEWHERE


def test_an_encoding_of_a_tokenizer_is_moved():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": ONES, "names": ["a", "b"]})
    found = placed((encoding, ONES), ELSEWHERE)[0]
    assert found["input_ids"].device == ELSEWHERE and found["names"] == ["a", "b"]
    assert encoding["input_ids"].device.type == "cpu"


@pytest.mark.parametrize(
    "batch",
    [
        Plain(ONES),
        [Plain({"deep": [ONES]})],
        {"x": Slotted(ONES)},
        Batch(Plain(ONES)),
        Single(ONES),
        Plain([ONES.to(ELSEWHERE), ONES]),
    ],
)
def test_what_cannot_be_moved_is_refused(batch):
    with pytest.raises(
        DataError, match=r"(Plain|Slotted|Single) whose 'inputs' is not on meta.*to\("
    ):
        placed(batch, ELSEWHERE)


def test_what_is_there_already_need_not_be_moved():
    for batch in (Plain(ONES), Single(ONES), [Plain({"deep": [ONES]})]):
        assert placed(batch, torch.device("cpu")) is not None
    batch = Plain([ONES.to(ELSEWHERE)])
    assert placed(batch, ELSEWHERE) is batch


def test_the_trainer_moves_batches_only_if_it_was_given_a_device():
    case = bank.small_net()
    batch = Plain(ONES)
    trainer = trainer_of(case)
    assert trainer.place(batch) is batch
    trainer.device = ELSEWHERE
    assert trainer.place(Batch(ONES)).inputs.device == ELSEWHERE
    with pytest.raises(DataError):
        trainer.place(batch)
