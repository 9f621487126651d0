from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.tasks import Classification, load_dataset, resize_dataset, rotate, rotation_task
from metatoolkit.tasks.resizing import raw_pixels


@pytest.fixture(scope="module")
def digits() -> Classification:
    return resize_dataset(load_dataset("digits"), side=20, padding=4)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_splits_are_disjoint_and_complete(digits: Classification, seed: int | None) -> None:
    task = rotation_task(digits, valid=200, tuning=100, seed=seed)
    indices = torch.cat([task.train_indices, task.tuning_indices, task.valid_indices])
    assert indices.sort().values.tolist() == list(range(len(digits.train_labels)))
    sizes = [len(split.labels) for split in (task.train, task.tuning, task.valid)]
    assert sizes == [len(digits.train_labels) - 300, 100, 200]
    assert torch.equal(task.train.images, digits.train_images[task.train_indices])
    assert torch.equal(task.valid.labels, digits.train_labels[task.valid_indices])
    assert torch.equal(task.tuning.labels, digits.train_labels[task.tuning_indices])


def test_the_order_hangs_on_the_seed_alone(digits: Classification) -> None:
    one, again, other = (rotation_task(digits, valid=200, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.valid_indices, again.valid_indices)
    assert not torch.equal(one.valid_indices, other.valid_indices)
    kept = rotation_task(digits, valid=200, tuning=100)
    count = len(digits.train_labels)
    assert kept.train_indices.tolist() == list(range(count - 300))
    assert kept.valid_indices.tolist() == list(range(count - 200, count))


def test_each_rotated_image_is_rotated_once(digits: Classification) -> None:
    task = rotation_task(digits, 30.0, valid=200, tuning=100, seed=0)
    black = task.background
    for split, originals in (
        (task.valid, digits.train_images[task.valid_indices]),
        (task.tuning, digits.train_images[task.tuning_indices]),
        (task.test, digits.test_images),
    ):
        expected = rotate(originals, math.radians(30), fill=black)
        torch.testing.assert_close(split.images, expected)
        # Pillow's rotation of the raw pixels, by +30 degrees.
        raw = raw_pixels(digits, originals[:1])[0, 0].numpy()
        other = np.array(Image.fromarray(raw).rotate(30, resample=Image.Resampling.BILINEAR))
        given = raw_pixels(digits, split.images[:1])[0, 0]
        torch.testing.assert_close(given, torch.from_numpy(other), atol=1e-4, rtol=0)
    assert torch.equal(task.test_upright.images, digits.test_images)
    assert torch.equal(task.test_upright.labels, task.test.labels)


def test_nothing_of_a_padded_digit_is_rotated_out(digits: Classification) -> None:
    # A side of 20 pixels reaches 10 (cos 30° + sin 30°) < 14 from the center.
    task = rotation_task(digits, 30.0, valid=200)
    before, after = (
        raw_pixels(digits, split.images).double().sum((1, 2, 3))
        for split in (task.test_upright, task.test)
    )
    assert float(((after - before) / before).abs().max()) < 0.02
    whole = resize_dataset(load_dataset("digits"), side=28)
    task = rotation_task(whole, 30.0, valid=200)
    before, after = (
        raw_pixels(whole, split.images).double().sum((1, 2, 3))
        for split in (task.test_upright, task.test)
    )
    assert float(((before - after) / before).max()) > 0.05


def test_the_published_split_of_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Whole:
        """As many images as MNIST has; label and first pixel tell the place."""

        classes = [str(digit) for digit in range(10)]
        mirrors, resources = ["https://example.org/"], [("images.gz", "")]
        __name__ = "MNIST"

        def __init__(self, root: str, train: bool, download: bool) -> None:
            count = 60_000 if train else 10_000
            self.data = torch.zeros(count, 3, 3, dtype=torch.uint8)
            self.data[:, 0, 0] = torch.arange(count) // 10_000
            self.targets = torch.arange(count) % 10

        def __len__(self) -> int:
            return len(self.data)

    monkeypatch.setattr(torchvision.datasets, "MNIST", Whole)
    mnist = load_dataset("mnist", tmp_path)
    task = rotation_task(mnist, valid=10_000, tuning=10_000, interpolation="nearest")
    places = [
        mnist.train_images[i, 0, 0, 0].unique().tolist()
        for i in (task.train_indices, task.tuning_indices, task.valid_indices)
    ]
    assert places == [[0, 1, 2, 3], [4], [5]]
    assert task.background == pytest.approx((-0.4242,), abs=1e-4)
    assert len(task.test.labels) == 10_000


def test_errors_tell_what_is_accepted(digits: Classification) -> None:
    with pytest.raises(ConfigurationError, match="valid is 0"):
        rotation_task(digits, valid=0)
    with pytest.raises(ConfigurationError, match="tuning is -1"):
        rotation_task(digits, valid=1, tuning=-1)
    with pytest.raises(DataError, match=r"1438 training images; 1000.*438.*none to train on"):
        rotation_task(digits, valid=1000, tuning=438)
    with pytest.raises(ConfigurationError, match="angle is nan"):
        rotation_task(digits, math.nan, valid=100)
