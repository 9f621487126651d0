"""What iterators over batches share: a place that is stored, and found again in equal ones."""

import pytest

from metatoolkit.errors import CheckpointError
from metatoolkit.tasks.resumable import BatchesSideBySide, ResumableBatches


class Counting(ResumableBatches[int]):
    kept = ("size",)
    counters = ("epoch", "next_batch")
    noun = "numbers"

    def __init__(self, size=3, seed=0):
        self.size, self.seed = size, seed
        self.epoch = self.next_batch = 0
        self.forgotten = 0

    def __next__(self):
        if self.next_batch == self.size:
            self.epoch, self.next_batch = self.epoch + 1, 0
        self.next_batch += 1
        return 100 * self.seed + 10 * self.epoch + self.next_batch

    def _moved(self):
        self.forgotten += 1


class Pairs(BatchesSideBySide[tuple[int, int]]):
    def __next__(self):
        return next(self.parts["left"]), next(self.parts["right"])


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_a_loop_goes_on_where_it_is():
    batches = Counting()
    assert [number for number, _ in zip(batches, range(2), strict=False)] == [1, 2]
    # The third was drawn before the range ended.
    assert iter(batches) is batches and take(batches, 2) == [11, 12]


def test_a_stored_place_is_found_again():
    batches = Counting(seed=4)
    take(batches, 4)
    place = batches.state_dict()
    assert place == {"size": 3, "seed": 4, "epoch": 1, "next_batch": 1}
    other = Counting()
    other.load_state_dict(place)
    assert take(other, 5) == take(batches, 5) and other.forgotten == 1


def test_another_seed_starts_over():
    batches = Counting()
    take(batches, 5)
    batches.reseed(7)
    assert take(batches, 4) == take(Counting(seed=7), 4) and batches.forgotten == 1


def test_places_of_other_batches_are_refused_and_change_nothing():
    batches = Counting(seed=2)
    with pytest.raises(CheckpointError, match="the stored numbers have size=4, these have size=3"):
        batches.load_state_dict(Counting(4).state_dict())
    for wrong in ({"size": 3}, {"size": 3, "seed": 9, "epoch": 1}, {}, None):
        with pytest.raises(CheckpointError, match="this is no state of Counting"):
            batches.load_state_dict(wrong)
    assert batches.state_dict() == Counting(seed=2).state_dict() and batches.forgotten == 0


def test_batches_side_by_side_store_the_places_of_their_parts():
    pairs = Pairs({"left": Counting(2), "right": Counting(3)})
    take(pairs, 4)
    place = pairs.state_dict()
    other = Pairs({"left": Counting(2), "right": Counting(3)})
    other.load_state_dict(place)
    assert take(other, 3) == take(pairs, 3)
    with pytest.raises(CheckpointError, match="no state of Counting"):
        other.load_state_dict({"left": place["left"]})
