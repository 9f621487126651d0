from __future__ import annotations

import io
import itertools

import pytest
import torch
from torch import Tensor

from metatoolkit.errors import CheckpointError, ConfigurationError, LabelError, ShapeError
from metatoolkit.tasks import Batches, ImageTransform, evaluation_batches


def make(**options: object) -> Batches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 1, 8, 8), dtype=torch.uint8, generator=generator)
    settings = {"batch_size": 5, "seed": 3, **options}
    return Batches(images, torch.arange(23), **settings)  # type: ignore[arg-type]


def take(batches: Batches, count: int) -> list[tuple[Tensor, ...]]:
    return list(itertools.islice(batches, count))


def same(first: list[tuple[Tensor, ...]], second: list[tuple[Tensor, ...]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_an_epoch_holds_each_example_at_most_once_and_the_next_is_another_permutation() -> None:
    batches = make()
    assert batches.epoch_length == 4
    first = torch.cat([labels for _, labels in take(batches, 4)])
    second = torch.cat([labels for _, labels in take(batches, 4)])
    assert len(first.unique()) == len(second.unique()) == 20
    assert not torch.equal(first, second)
    assert batches.epoch == 1


def test_without_drop_last_an_epoch_holds_each_example_once() -> None:
    batches = make(drop_last=False)
    assert batches.epoch_length == 5
    parts = [labels for _, labels in take(batches, 5)]
    assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
    assert torch.cat(parts).sort().values.tolist() == list(range(23))


def test_rows_of_the_tensors_stay_together() -> None:
    numbers = torch.arange(30)
    for first, second in take(Batches(numbers * 2, numbers, batch_size=7), 8):
        assert torch.equal(first, second * 2)


def test_without_shuffle_the_order_is_kept_and_batches_are_copies() -> None:
    numbers = torch.arange(6)
    batches = Batches(numbers, batch_size=2, shuffle=False)
    assert [batch.tolist() for (batch,) in take(batches, 4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    next(batches)[0].fill_(9)
    assert numbers.tolist() == list(range(6))


def test_seeds_decide_the_order_and_the_global_state_does_not() -> None:
    torch.manual_seed(1)
    first = take(make(seed=5), 9)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    second = take(make(seed=5), 9)
    torch.manual_seed(1)
    take(make(seed=5, transform=ImageTransform(padding=2, flip=True)), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)
    assert not same(first, take(make(seed=6), 9))


@pytest.mark.parametrize("place", [0, 1, 4, 6, 13])
def test_a_restored_iterator_goes_on_bitwise(place: int) -> None:
    transform = ImageTransform((0.5,), (0.25,), padding=2, flip=True)
    batches = make(transform=transform)
    take(batches, place)
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    expected = take(batches, 11)
    file.seek(0)
    restored = make(transform=transform, seed=99)
    take(restored, 2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert same(take(restored, 11), expected)


def test_reseeding_starts_over() -> None:
    batches = make(seed=1)
    take(batches, 6)
    batches.reseed(8)
    assert same(take(batches, 6), take(make(seed=8), 6))


def test_a_state_of_other_batches_is_refused() -> None:
    state = make(batch_size=4).state_dict()
    with pytest.raises(CheckpointError, match=r"batch_size=4.*batch_size=5"):
        make().load_state_dict(state)
    with pytest.raises(CheckpointError, match="no state of Batches"):
        make().load_state_dict({"epoch": 1})


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_batch_sizes_that_make_no_sense(size: object) -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        make(batch_size=size)


def test_a_batch_larger_than_the_data_needs_drop_last_off() -> None:
    with pytest.raises(ConfigurationError, match=r"24.*23 examples.*drop_last=False"):
        make(batch_size=24)
    assert len(next(make(batch_size=24, drop_last=False))[0]) == 23


def test_tensors_that_do_not_fit_together() -> None:
    with pytest.raises(ShapeError, match="3, 4 examples"):
        Batches(torch.zeros(3), torch.zeros(4), batch_size=1)
    with pytest.raises(ShapeError, match="0-d"):
        Batches(torch.tensor(1.0), batch_size=1)
    with pytest.raises(ShapeError, match="no tensor"):
        Batches(batch_size=1)
    with pytest.raises(ConfigurationError, match="no examples"):
        Batches(torch.zeros(0), batch_size=1, drop_last=False)


def test_labels_are_checked_where_classes_are_given() -> None:
    make(classes=23)
    with pytest.raises(LabelError, match="22 at index 22; with 22 classes"):
        make(classes=22)


def test_evaluation_batches_pass_once_in_order() -> None:
    numbers = torch.arange(7)
    parts = list(evaluation_batches(numbers, numbers * 2, batch_size=3))
    assert [len(first) for first, _ in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([first for first, _ in parts]), numbers)
    with pytest.raises(ConfigurationError, match="batch_size"):
        evaluation_batches(numbers, batch_size=0)
    with pytest.raises(ShapeError, match="7, 6 examples"):
        evaluation_batches(numbers, numbers[:6])


def test_evaluation_batches_are_transformed() -> None:
    images = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    (batch,) = next(evaluation_batches(images, transform=ImageTransform((0.5,), (0.25,))))
    assert torch.equal(batch, torch.full((3, 1, 4, 4), 2.0))
