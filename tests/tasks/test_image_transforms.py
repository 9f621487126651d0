from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.tasks import ImageTransform


def images(count: int = 64, channels: int = 3, height: int = 7, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def crops(image: Tensor, padding: int, flip: bool) -> list[Tensor]:
    """Every result that padding, cropping and flipping one image can have."""
    _, height, width = image.shape
    padded = F.pad(image[None].float(), (padding,) * 4, mode="reflect")[0]
    steps = range(2 * padding + 1)
    found = [padded[:, y : y + height, x : x + width] for y in steps for x in steps]
    return found + [crop.flip(2) for crop in found] if flip else found


@pytest.mark.parametrize(("padding", "flip"), [(3, True), (2, False), (0, True)])
def test_each_image_is_a_crop_of_its_reflected_self(padding: int, flip: bool) -> None:
    batch = images()
    moved = ImageTransform(padding=padding, flip=flip)(batch) * 255
    places = []
    for image, result in zip(batch, moved, strict=True):
        equal = [torch.allclose(crop, result) for crop in crops(image, padding, flip)]
        assert sum(equal) == 1
        places.append(equal.index(True))
    assert len(set(places)) > (1 if padding == 0 else 10)


def test_crops_and_flips_are_uniform() -> None:
    batch = torch.arange(25.0).view(1, 1, 5, 5).expand(4000, 1, 5, 5)
    generator = torch.Generator().manual_seed(0)
    moved = ImageTransform(padding=1, flip=True)(batch, generator)
    mirrored = moved[:, 0, 2, 1] > moved[:, 0, 2, 3]
    assert abs(mirrored.double().mean() - 0.5) < 0.04
    centers, counts = moved[:, 0, 2, 2].unique(return_counts=True)
    assert centers.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert (counts - 4000 / 9).abs().max() < 100


def test_uint8_images_are_scaled_and_normalized() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    batch = images()
    result = ImageTransform(mean, std)(batch)
    expected = (batch.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).double().view(3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_floating_point_images_keep_their_values_and_their_type() -> None:
    batch = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(ImageTransform((0.5,), (0.1,))(batch), batch)
    moved = ImageTransform(padding=2)(batch)
    assert moved.dtype == torch.float64
    assert set(moved.flatten().tolist()) <= set(batch.flatten().tolist())


def test_the_input_is_not_modified() -> None:
    batch = images()
    before = batch.clone()
    ImageTransform((0.5,) * 3, (0.5,) * 3, padding=2, flip=True)(batch)
    assert torch.equal(batch, before)


def test_a_generator_decides_everything() -> None:
    transform = ImageTransform(padding=3, flip=True)
    first, second, other = (
        transform(images(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_errors_tell_what_is_accepted() -> None:
    with pytest.raises(ConfigurationError, match="padding is -1"):
        ImageTransform(padding=-1)
    with pytest.raises(ConfigurationError, match="give both or neither"):
        ImageTransform(mean=(0.5,))
    with pytest.raises(ConfigurationError, match="must be positive"):
        ImageTransform((0.5,), (0.0,))
    with pytest.raises(ShapeError, match=r"padding is 7.*7×9"):
        ImageTransform(padding=7)(images())
    with pytest.raises(ShapeError, match=r"\(3, 7, 9\)"):
        ImageTransform()(images()[0])
    with pytest.raises(ShapeError, match="3 channels, but mean and std have 1"):
        ImageTransform((0.5,), (0.1,))(images())
