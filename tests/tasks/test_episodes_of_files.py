"""Episodes of images in files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from metatoolkit.errors import (
    DataError,
    ShapeError,
)
from metatoolkit.tasks import (
    EpisodeBatches,
    ImageFiles,
    PhotoTransform,
    default_domains,
    image_folder_domain,
)
from tests.tasks.images import write_image, write_tree
from tests.tasks.taken import raw, same, take


def test_episodes_of_image_files_are_augmented_reproducibly(tmp_path: Path) -> None:
    for number in range(8):
        for image in range(3):
            write_image(tmp_path / f"c{number}" / f"{image}.png", 20 * number, (9 + image, 12))
    domain = image_folder_domain("tiny", tmp_path)

    def make(augment: bool) -> EpisodeBatches:
        transform = PhotoTransform(8, augment)
        return EpisodeBatches(domain, "train", 2, 1, 2, transform=transform)

    plain, augmented = take(make(False), 4), take(make(True), 4)
    assert plain[0].support.shape == (2, 1, 3, 8, 8)
    assert plain[0].query.shape == (2, 2, 3, 8, 8)
    assert not same(plain, augmented)
    torch.manual_seed(9)
    assert same(augmented, take(make(True), 4))


def test_images_of_different_sizes_need_a_transform(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"c{number}": 2 for number in range(8)})
    domain = image_folder_domain("tiny", tmp_path)
    assert next(EpisodeBatches(domain, "train", 4, 1, 1)).query.shape == (4, 1, 3, 4, 4)
    write_image(tmp_path / "c4" / "0001.png", 0, (5, 4))
    for transform in (None, raw):
        with pytest.raises(ShapeError, match="PhotoTransform"):
            next(EpisodeBatches(domain, "train", 4, 1, 1, transform=transform))


def test_a_corrupt_image_is_named_and_the_place_is_kept(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"c{number}": 2 for number in range(8)})
    broken = tmp_path / "c2" / "0001.png"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    domain = image_folder_domain("tiny", tmp_path)
    assert isinstance(domain.train, ImageFiles)
    batches = EpisodeBatches(domain, "train", 4, 1, 1, transform=PhotoTransform(4))
    with pytest.raises(DataError, match=r"c2/0001\.png cannot be read as an image"):
        next(batches)
    assert batches.next_episode == 0
    broken.write_bytes(content)
    assert next(batches).support.shape == (4, 1, 3, 4, 4)


def test_a_real_batch_goes_through_a_device_and_a_pickle() -> None:
    digits = default_domains(["digits"], size=12)
    batches = EpisodeBatches(digits, "train", 5, 1, 3, device="cpu")
    episode = next(batches)
    assert episode.query.device.type == "cpu"
    buffer = io.BytesIO()
    torch.save(batches.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["next_episode"] == 1
