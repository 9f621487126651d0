"""Streams whose order is drawn from global generators."""

import random

import numpy as np
import pytest
import torch

import metatoolkit as mt
from metatoolkit.testing import bank
from metatoolkit.training.batch_stream import BatchStream
from tests.training.streams import seed_all, stored, take


class Shuffled:
    """Batches in an order that a global generator draws at the beginning of each epoch."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        for index in self.draw():
            yield torch.tensor([float(index)])


def numpy_order():
    return np.random.permutation(5).tolist()


def numpy_normal_order():
    return np.random.randn(5).argsort().tolist()


def python_order():
    return random.sample(range(5), 5)


def torch_order():
    return torch.randperm(5).tolist()


def numpy_order_as_it_goes():
    for _ in range(5):
        yield np.random.randint(1000) + random.random()


ORDERS = [numpy_order, numpy_normal_order, python_order, torch_order, numpy_order_as_it_goes]


@pytest.mark.parametrize("draw", ORDERS)
@pytest.mark.parametrize("pause", [1, 4, 5, 6, 13])
def test_global_generators_are_where_they_were(tmp_path, draw, pause):
    seed_all(1)
    whole = take(BatchStream("train_batches", Shuffled(draw)), 17)
    seed_all(1)
    stream = BatchStream("train_batches", Shuffled(draw))
    take(stream, pause)
    saved = stored(tmp_path, stream.state_dict())
    # Another process.
    seed_all(2)
    resumed = BatchStream("train_batches", Shuffled(draw))
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, take(resumed, 17 - pause), whole[pause:]))


@pytest.mark.parametrize("draw", ORDERS[:-1])
def test_two_streams_and_others_may_draw_in_turns_at_their_epochs(tmp_path, draw):
    def run(count, saved=None):
        streams = [BatchStream("train_batches", Shuffled(draw)) for _ in range(2)]
        if saved is not None:
            for stream, state in zip(streams, saved, strict=True):
                stream.load_state_dict(state)
        found = []
        for step in range(count):
            found.append(streams[0].next())
            if step % 3 == 2:
                found.append(streams[1].next())
                draw()
        return found, [stream.state_dict() for stream in streams]

    seed_all(1)
    whole, _ = run(21)
    seed_all(1)
    first, saved = run(9)
    seed_all(2)
    rest, _ = run(12, stored(tmp_path, saved))
    assert all(map(torch.equal, first + rest, whole))


def test_a_data_loader_that_shuffles_goes_on_in_another_process(tmp_path):
    data = torch.arange(40.0)

    def loader():
        return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

    seed_all(1)
    whole = take(BatchStream("train_batches", loader()), 17)
    seed_all(1)
    stream = BatchStream("train_batches", loader())
    take(stream, 8)
    saved = stored(tmp_path, stream.state_dict())
    seed_all(2)
    resumed = BatchStream("train_batches", loader())
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, take(resumed, 9), whole[8:]))


def test_a_batch_that_was_changed_in_place_is_not_compared():
    batches = [torch.zeros(3), torch.zeros(3)]
    stream = BatchStream("train_batches", batches)
    stream.next().add_(1)
    saved = stream.state_dict()
    resumed = BatchStream("train_batches", [torch.zeros(3), torch.zeros(3)])
    resumed.load_state_dict(saved)
    assert resumed.taken == 1


def test_global_generators_stay_where_no_batch_draws_from_them():
    saved = BatchStream("train_batches", [1, 2, 3]).state_dict()
    assert "generators" not in saved
    seed_all(3)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    seed_all(3)
    BatchStream("train_batches", [1, 2, 3]).load_state_dict(saved)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_a_training_with_a_loader_of_numpy_goes_on_bitwise(tmp_path):
    def train(steps, resume, seed, path):
        case = bank.small_net()
        inputs, targets = case.train_batches[0]

        class Loader:
            def __iter__(self):
                for _ in range(4):
                    rows = np.random.permutation(len(inputs))[:6]
                    yield inputs[rows], targets[rows]

        seed_all(seed)
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            mt.hypergradients.Unrolled(1),
            torch.optim.Adam(case.problem.meta.parameters(), lr=0.01),
        )
        valid = [case.valid_batch]
        trainer.fit(Loader(), valid, steps, checkpoint=path, resume=resume, progress=False)
        return [*case.problem.model.state_dict().values(), *case.problem.meta.parameters()]

    whole = train(9, False, 1, tmp_path / "whole.pt")
    train(5, False, 1, tmp_path / "c.pt")
    assert all(map(torch.equal, train(9, True, 2, tmp_path / "c.pt"), whole))


class Eager:
    """Draws its order when an iteration is asked for, and nothing afterwards."""

    def __iter__(self):
        return iter([torch.tensor(float(index)) for index in numpy_order()])


@pytest.mark.parametrize("pause", [1, 5, 7])
def test_an_order_that_is_drawn_with_the_iterator_is_drawn_again(tmp_path, pause):
    seed_all(1)
    whole = take(BatchStream("train_batches", Eager()), 14)
    seed_all(1)
    stream = BatchStream("train_batches", Eager())
    take(stream, pause)
    saved = stored(tmp_path, stream.state_dict())
    seed_all(2)
    resumed = BatchStream("train_batches", Eager())
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, take(resumed, 14 - pause), whole[pause:]))
