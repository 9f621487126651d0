"""Places of batches in epochs: each example once, in an order that follows from seed and epoch."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.epochs import EpochBatches


class Places(EpochBatches[list[int]]):
    def __next__(self):
        places = self.next_places().tolist()
        self.next_batch += 1
        return places


def make(length=5, batch_size=2, seed=3, shuffle=True, drop_last=False):
    return Places(length, batch_size, seed, shuffle, drop_last)


def order(seed, epoch, length=5):
    key = fold_in(seed, epoch, Stream.EPOCH_ORDER)
    return torch.randperm(length, generator=torch.Generator().manual_seed(key)).tolist()


def test_an_epoch_holds_each_place_once_in_its_own_order():
    batches = make()
    for epoch in range(3):
        found = [next(batches) for _ in range(3)]
        assert [len(places) for places in found] == [2, 2, 1]
        assert [place for places in found for place in places] == order(3, epoch)
    assert order(3, 0) != order(3, 1)


def test_without_a_shuffle_places_keep_their_order():
    batches = make(shuffle=False, drop_last=True)
    assert batches.epoch_length == 2
    assert [next(batches) for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_a_place_in_another_epoch_has_the_order_of_that_epoch():
    batches, other = make(), make(seed=9)
    for _ in range(4):
        next(batches)
    next(other)
    other.load_state_dict(batches.state_dict())
    assert next(other) == order(3, 1)[2:4]


def test_a_batch_that_is_not_counted_comes_again():
    batches = make()
    assert batches.next_places().tolist() == batches.next_places().tolist() == order(3, 0)[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; an integer from 1 on"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 6, "drop_last": True}, "batch_size is 6, but there are 5 examples"),
        ({"length": 0}, "there are no examples"),
    ],
)
def test_what_holds_no_batch_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**change)
