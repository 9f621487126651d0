"""Rotation against Pillow, finite differences and what normalization does to the background."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.tasks import rotate

BACKGROUND = 0.25
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


def noise(height: int, width: int, border: int = 1) -> Tensor:
    """One image of noise in a border of background, as a digit has one."""
    generator = torch.Generator().manual_seed(height)
    inside = torch.rand(1, 1, height, width, generator=generator)
    return F.pad(inside, (border,) * 4, value=BACKGROUND)


def pillow(image: Tensor, degrees: float, interpolation: str) -> Tensor:
    rotated = Image.fromarray(image[0, 0].numpy()).rotate(
        degrees, resample=RESAMPLING[interpolation], fillcolor=BACKGROUND
    )
    return torch.from_numpy(np.array(rotated))[None, None]


@pytest.mark.parametrize("degrees", [30, -30, 11.3, 200])
@pytest.mark.parametrize("shape", [(26, 26), (9, 14), (7, 4)])
def test_bilinear_rotation_is_that_of_pillow(degrees: float, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = pillow(image, degrees, "bilinear")
    rotated = rotate(image, math.radians(degrees), fill=BACKGROUND)
    torch.testing.assert_close(rotated, expected, atol=1e-5, rtol=0)
    other = rotate(image, -math.radians(degrees), fill=BACKGROUND)
    assert float((other - expected).abs().max()) > 0.1


@pytest.mark.parametrize("shape", [(28, 28), (9, 14)])
def test_nearest_rotation_is_that_of_pillow(shape: tuple[int, int]) -> None:
    image = noise(*shape, border=0)
    expected = pillow(image, 30, "nearest")
    rotated = rotate(image, math.radians(30), fill=BACKGROUND, interpolation="nearest")
    assert torch.equal(rotated, expected)


def test_a_quarter_turn_is_a_permutation_of_the_pixels() -> None:
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    rotated = rotate(image, math.pi / 2)
    torch.testing.assert_close(rotated, image.rot90(1, (2, 3)), atol=1e-12, rtol=0)


def test_normalized_images_are_rotated_as_raw_ones_are() -> None:
    raw = torch.rand(3, 2, 11, 11, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=raw.dtype).view(-1, 1, 1) for v in ((0.13, 0.5), (0.3, 0.2)))
    after = (rotate(raw, 0.5) - mean) / std
    before = rotate((raw - mean) / std, 0.5, fill=((0 - mean) / std).flatten())
    torch.testing.assert_close(before, after, atol=1e-12, rtol=0)
    # With zero outside, as if the background were gray, it is not.
    assert float((rotate((raw - mean) / std, 0.5) - after).abs().max()) > 0.1


@pytest.mark.parametrize("angle", [0.013, 0.5, -2.0])
def test_derivative_in_the_angle_is_that_of_finite_differences(angle: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images, cotangent = torch.randn(2, 2, 2, 9, 12, dtype=torch.float64, generator=generator)
    at = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
    (given,) = torch.autograd.grad((rotate(images, at, fill=0.7) * cotangent).sum(), at)
    step = 1e-7
    above, below = (
        float((rotate(images, angle + sign * step, fill=0.7) * cotangent).sum()) for sign in (1, -1)
    )
    assert float(given) == pytest.approx((above - below) / (2 * step), rel=1e-6)


def test_second_derivative_in_the_angle() -> None:
    images = noise(6, 7).double()

    def loss(angle: Tensor) -> Tensor:
        return rotate(images, angle, fill=0.7).square().sum()

    at = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(loss, (at,))


def test_it_is_differentiable_in_the_images() -> None:
    images = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, 0.4, fill=0.1), (images,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_type_of_the_images_is_kept(dtype: torch.dtype) -> None:
    images = noise(12, 12).to(dtype)
    rotated = rotate(images, torch.tensor(0.3), fill=BACKGROUND)
    assert rotated.dtype == dtype
    exact = rotate(images.double(), float(torch.tensor(0.3)), fill=BACKGROUND)
    torch.testing.assert_close(rotated.double(), exact, atol=4e-3, rtol=0)


def test_errors_tell_what_is_accepted() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ShapeError, match=r"\(3, 8, 8\); \(batch, channels, height, width\)"):
        rotate(images[0], 0.1)
    with pytest.raises(DataError, match=r"^images are uint8; floating-point.*transform"):
        rotate(images.to(torch.uint8), 0.1)
    with pytest.raises(ShapeError, match=r"angle has shape \(2,\)"):
        rotate(images, torch.zeros(2))
    with pytest.raises(ConfigurationError, match="angle is nan"):
        rotate(images, math.nan)
    with pytest.raises(ShapeError, match=r"fill has shape \(2,\).*3 channels"):
        rotate(images, 0.1, fill=(0.0, 1.0))
    with pytest.raises(ConfigurationError, match="interpolation is 'cubic'"):
        rotate(images, 0.1, interpolation="cubic")  # type: ignore[arg-type]
