from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from metatoolkit.errors import ConfigurationError
from metatoolkit.tasks import load_dataset, resize_dataset
from metatoolkit.tasks.resizing import raw_pixels


def test_digits_become_the_size_of_mnist() -> None:
    digits = load_dataset("digits")
    large = resize_dataset(digits, side=20, padding=4)
    assert large.input_shape == (1, 28, 28)
    assert large.test_images.shape == (len(digits.test_labels), 1, 28, 28)
    assert torch.equal(large.train_labels, digits.train_labels)
    assert float(large.train_images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(large.train_images.std()) == pytest.approx(1, abs=1e-4)
    pixels = raw_pixels(large, large.test_images)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    border = torch.ones(28, 28, dtype=torch.bool)
    border[4:24, 4:24] = False
    assert float(pixels[:, 0, border].abs().max()) < 1e-6


def test_images_are_resized_as_pillow_does() -> None:
    digits = load_dataset("digits")
    for side in (20, 5):
        resized = resize_dataset(digits, side=side)
        given = raw_pixels(resized, resized.train_images)[7, 0]
        source = raw_pixels(digits, digits.train_images)[7, 0]
        size, resample = (side, side), Image.Resampling.BILINEAR
        expected = np.array(Image.fromarray(source.numpy()).resize(size, resample=resample))
        torch.testing.assert_close(given, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_integer_images_are_taken() -> None:
    digits = load_dataset("digits")
    whole = dataclasses.replace(
        digits,
        train_images=(raw_pixels(digits, digits.train_images) * 255).to(torch.uint8),
        test_images=(raw_pixels(digits, digits.test_images) * 255).to(torch.uint8),
    )
    expected, given = resize_dataset(digits, 12, 1), resize_dataset(whole, 12, 1)
    assert given.train_images.dtype == torch.float32
    torch.testing.assert_close(given.train_images, expected.train_images, atol=0.02, rtol=0)


def test_errors_tell_what_is_accepted() -> None:
    digits = load_dataset("digits")
    for side, padding in ((0, 0), (20, -1)):
        with pytest.raises(ConfigurationError, match=f"side is {side}, padding is {padding}"):
            resize_dataset(digits, side, padding)
