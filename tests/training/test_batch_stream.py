"""Streams of batches: they start over, and go back to where they were."""

import hashlib

import numpy as np
import pytest
import torch

from metatoolkit.errors import DataError
from metatoolkit.training import batch_stream
from metatoolkit.training.batch_stream import BatchStream, Stateful
from tests.training.streams import seed_all, stored, take


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


@pytest.mark.parametrize("kind", ["own", "in turns", "other data"])
def test_batches_that_are_others_after_a_resume_are_an_error(tmp_path, kind):
    def batches(shift):
        rng = np.random.default_rng()
        for _ in range(20):
            if kind == "own":
                yield {"x": torch.tensor(rng.normal(size=3))}
            elif kind == "in turns":
                yield {"x": np.random.rand(3)}
            else:
                yield {"x": [shift, np.arange(3) + shift]}

    seed_all(1)
    stream = BatchStream("train_batches", batches(0))
    for _ in range(4):
        stream.next()
        np.random.rand()
    saved = stored(tmp_path, stream.state_dict())
    seed_all(1)
    resumed = BatchStream("train_batches", batches(1))
    with pytest.raises(DataError, match=r"train_batches: batch 4 is another one .*state_dict"):
        resumed.load_state_dict(saved)


def changed(batch):
    return lambda: {
        "number": (3, 4),
        "float": (0.5, 0.25),
        "text": ("a", "b"),
        "bytes": (b"a", b"b"),
        "array": (np.arange(3), np.arange(3) + 1),
        "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
        "type": (np.zeros(2, np.int64), np.zeros(2, np.float64)),
        "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        "shape of a tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
        "type of a tensor": (torch.zeros(2, dtype=torch.int32), torch.zeros(2)),
        "bfloat16": (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        "gradient": tuple(torch.tensor([x], requires_grad=True) for x in (0.0, 1.0)),
        "conjugate": tuple(torch.tensor([1 + x * 1j]).conj() for x in (0.0, 1.0)),
        "negative": tuple(torch.tensor([1j * x]).conj().imag for x in (0.0, 1.0)),
        "single": (torch.arange(6.0)[::2][1:2], torch.arange(6.0)[::2][2:]),
        "strided": (torch.arange(6).view(2, 3).T, torch.arange(6).view(3, 2)),
    }[batch]


@pytest.mark.parametrize(
    "batch",
    [
        "number",
        "float",
        "text",
        "bytes",
        "array",
        "shape",
        "type",
        "tensor",
        "shape of a tensor",
        "type of a tensor",
        "bfloat16",
        "gradient",
        "conjugate",
        "negative",
        "single",
        "strided",
    ],
)
def test_another_batch_of_any_kind_is_noticed(batch):
    one, other = changed(batch)()
    stream = BatchStream("train_batches", [[1, one]])
    stream.next()
    saved = stream.state_dict()
    BatchStream("train_batches", [[1, one]]).load_state_dict(saved)
    with pytest.raises(DataError, match="batch 1 is another one"):
        BatchStream("train_batches", [[1, other]]).load_state_dict(saved)
    with pytest.raises(DataError, match="batch 1 is another one"):
        BatchStream("train_batches", [[2, one]]).load_state_dict(saved)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: np.array([object()]),
        object,
    ],
    ids=["sparse", "quantized", "objects", "object"],
)
def test_what_has_no_digest_is_taken_again(make):
    leaf = make()
    stream = BatchStream("train_batches", [leaf, leaf])
    stream.next()
    resumed = BatchStream("train_batches", [leaf, leaf])
    resumed.load_state_dict(stream.state_dict())
    assert resumed.taken == 1


def test_an_iterator_cannot_go_back_from_its_first_batch():
    stream = BatchStream("train_batches", iter([1, 2, 3]))
    saved = stream.state_dict()
    stream.next()
    with pytest.raises(DataError, match="cannot go back from batch 1 to batch 0"):
        stream.load_state_dict(saved)


def test_a_list_costs_no_look_at_the_generators(monkeypatch):
    def forbidden():
        raise AssertionError("a list draws nothing")

    monkeypatch.setattr(batch_stream, "place", forbidden)
    for batches in ([1, 2], (1, 2)):
        assert take(BatchStream("train_batches", batches), 5) == [1, 2, 1, 2, 1]
    with pytest.raises(AssertionError, match="draws nothing"):
        BatchStream("train_batches", iter([1]))


def test_batches_of_inference_mode_are_compared():
    def batches(shift):
        with torch.inference_mode():
            return [torch.arange(3) + shift]

    stream = BatchStream("train_batches", batches(0))
    stream.next()
    saved = stream.state_dict()
    BatchStream("train_batches", batches(0)).load_state_dict(saved)
    with pytest.raises(DataError, match="batch 1 is another one"):
        BatchStream("train_batches", batches(1)).load_state_dict(saved)


def test_digests_are_those_of_every_version():
    # A checkpoint of another version is compared, too.
    stream = BatchStream("train_batches", [(3, torch.tensor([1.0]), np.array([2], np.int64))])
    stream.next()
    content = b"3" + b"(1,) torch.float32" + bytes([0, 0, 128, 63])
    content += b"(1,) int64" + bytes([2, 0, 0, 0, 0, 0, 0, 0])
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert stream.state_dict()["digest"] == expected
