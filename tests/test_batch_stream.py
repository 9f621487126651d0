"""Streams of batches: they start over, and go back to where they were."""

import pytest
import torch

from metatoolkit.batch_stream import BatchStream, Stateful
from metatoolkit.errors import DataError


def take(stream, count):
    return [stream.next() for _ in range(count)]


class Restarting:
    """An iterable with a state whose iterators begin where the state says when they are made."""

    def __init__(self, size=5):
        self.size, self.place = size, 0

    def __iter__(self):
        while self.place < self.size:
            self.place += 1
            yield self.place
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


class Buffering(Restarting):
    """As a loader with workers: an iterator reads its place once, when it begins."""

    def __iter__(self):
        yield from range(self.place + 1, self.size + 1)


def test_batches_start_over():
    stream = BatchStream("train_batches", [1, 2, 3])
    assert take(stream, 7) == [1, 2, 3, 1, 2, 3, 1] and stream.taken == 7


def test_each_pass_asks_the_iterable_again():
    loader = torch.utils.data.DataLoader(
        torch.arange(20), batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    stream = BatchStream("train_batches", loader)
    first, second = ([int(number) for number in take(stream, 20)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_an_iterator_that_ends_says_what_is_needed():
    stream = BatchStream("train_batches", iter([1, 2]))
    assert take(stream, 2) == [1, 2]
    with pytest.raises(DataError, match=r"train_batches: it is exhausted.*pass a list"):
        stream.next()
    assert stream.taken == 2
    with pytest.raises(DataError, match=r"valid_batches: it holds no batch"):
        BatchStream("valid_batches", []).next()


@pytest.mark.parametrize("pause", [0, 1, 4, 5, 7, 10])
def test_batches_without_a_state_are_drawn_again(pause):
    whole = take(BatchStream("train_batches", [1, 2, 3, 4, 5]), 15)
    stream = BatchStream("train_batches", [1, 2, 3, 4, 5])
    take(stream, pause)
    saved = stream.state_dict()
    assert saved["taken"] == pause and saved["batches"] is None
    resumed = BatchStream("train_batches", [1, 2, 3, 4, 5])
    resumed.load_state_dict(saved)
    assert take(resumed, 15 - pause) == whole[pause:] and resumed.taken == 15


@pytest.mark.parametrize("pause", [1, 4, 7])
def test_batches_with_a_state_go_back_at_once(pause):
    whole = take(BatchStream("train_batches", Restarting()), 12)
    stream = BatchStream("train_batches", Restarting())
    take(stream, pause)
    saved = stream.state_dict()
    batches = Restarting()
    resumed = BatchStream("train_batches", batches)
    resumed.load_state_dict(saved)
    # The state is loaded; nothing is drawn for it.
    assert batches.place == saved["batches"]["place"] and resumed.taken == pause
    assert take(resumed, 12 - pause) == whole[pause:]


def test_the_iterator_is_a_new_one_after_a_resume():
    batches = Buffering()
    resumed = BatchStream("train_batches", batches)
    # One that was made before would go on from its own place.
    assert resumed.next() == 1
    resumed.load_state_dict({"taken": 3, "batches": {"place": 3}})
    assert take(resumed, 3) == [4, 5, 4]
    assert resumed.taken == 6


def test_a_stream_goes_back_in_the_same_process():
    stream = BatchStream("train_batches", [1, 2, 3, 4, 5])
    take(stream, 2)
    saved = stream.state_dict()
    take(stream, 2)
    stream.load_state_dict(saved)
    assert take(stream, 2) == [3, 4] and stream.taken == 4
    once = BatchStream("train_batches", iter([1, 2, 3, 4, 5]))
    take(once, 4)
    with pytest.raises(DataError, match=r"train_batches: .*cannot go back.*4.*2"):
        once.load_state_dict(saved)
    once.load_state_dict({"taken": 4, "batches": None})
    assert once.next() == 5


def test_what_has_a_state_is_told_by_its_methods():
    assert isinstance(Restarting(), Stateful)
    assert not isinstance([1, 2], Stateful)
    assert not isinstance(iter([1]), Stateful)
