from __future__ import annotations

import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.tasks import ImageSet, domain_of
from metatoolkit.tasks.labeled_batches import LabeledBatches


def domain():
    labels = torch.arange(8).repeat_interleave(3)
    images = (10 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(24, 1, 2, 2)
    return domain_of("levels", ImageSet(images, labels, tuple("abcdefgh")))


def test_images_come_with_their_labels_without_repetition() -> None:
    batches = LabeledBatches(domain(), "train", 12, seed=1)
    assert batches.classes == 4
    images, labels = next(batches)
    assert images.shape == (12, 1, 2, 2)
    # Classes a, c, e, g are for training.
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, 20.0 * labels)
    assert labels.bincount().tolist() == [3, 3, 3, 3]


def test_batches_follow_from_seed_and_place() -> None:
    batches, other = (LabeledBatches(domain(), "train", 5, seed=seed) for seed in (1, 2))
    first = [next(batches)[1].tolist() for _ in range(4)]
    assert first != [next(other)[1].tolist() for _ in range(4)]
    place = batches.state_dict()
    expected = next(batches)
    again = LabeledBatches(domain(), "train", 5)
    again.load_state_dict(place)
    assert all(torch.equal(a, b) for a, b in zip(next(again), expected, strict=True))


def test_the_transform_draws_from_the_batch_seed() -> None:
    def transform(images, generator):
        return images + torch.rand(len(images), 1, 1, 1, generator=generator)

    runs = [LabeledBatches(domain(), "train", 5, seed=3, transform=transform) for _ in range(2)]
    (first, _), (second, _) = map(next, runs)
    assert torch.equal(first, second)
    assert not torch.equal(next(runs[0])[0] - first, torch.zeros_like(first))


def test_wrong_sizes_are_answered() -> None:
    for size in (0, 13):
        with pytest.raises(ConfigurationError, match=f"batch_size is {size}.*1 to 12"):
            LabeledBatches(domain(), "train", size)
    batches = LabeledBatches(domain(), "train", 5)
    with pytest.raises(CheckpointError, match="stored batches have batch_size=4"):
        batches.load_state_dict({"seed": 0, "batch_size": 4, "next_batch": 0})
