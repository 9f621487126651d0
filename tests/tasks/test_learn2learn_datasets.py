"""Data sets of learn2learn as domains."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.tasks import EpisodeBatches, MapDataset, learn2learn_domain
from metatoolkit.tasks.domains import SPLITS


def write_mini_imagenet(folder: Path) -> None:
    for number, mode in enumerate(("train", "validation", "test")):
        data = {
            "image_data": np.full((6, 84, 84, 3), 10 * number, dtype=np.uint8),
            "class_dict": {"n2": [0, 1, 2], "n1": [3, 4, 5]},
        }
        data["image_data"][:, 0, 0, 0] = np.arange(6)
        (folder / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(data))


def test_a_data_set_of_learn2learn_is_a_domain(tmp_path: Path) -> None:
    write_mini_imagenet(tmp_path)
    domain = learn2learn_domain("MiniImagenet", tmp_path)
    assert [len(domain.split(split).class_names) for split in SPLITS] == [2, 2, 2]
    loaded = domain.valid.load([4, 0])
    assert loaded[0].dtype == torch.uint8
    assert loaded[0].shape == (3, 84, 84)
    assert [int(image[0, 0, 0]) for image in loaded] == [4, 0]
    assert int(loaded[0][1, 3, 3]) == 10
    episode = next(EpisodeBatches(domain, "test", 2, 1, 2))
    assert episode.query.shape == (2, 2, 3, 84, 84)
    places = torch.cat(tuple(episode), dim=1)[:, :, 0, 0, 0] * 255
    assert sorted(sorted(row) for row in places.round().int().tolist()) == [[0, 1, 2], [3, 4, 5]]


def test_data_sets_of_learn2learn_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'MiniImageNet'.*Did you mean 'MiniImagenet'"):
        learn2learn_domain("MiniImageNet", tmp_path)
    with pytest.raises(DataError, match=r"CIFARFS \(train\) from .*download=True"):
        learn2learn_domain("CIFARFS", tmp_path / "empty")


def load(image: object) -> torch.Tensor:
    return MapDataset([(image, 0)], torch.zeros(1, dtype=torch.int64), ("one",)).load([0])[0]


def test_images_of_all_modes_have_the_brightness_that_they_show() -> None:
    colors = np.array([[[10, 20, 30], [200, 0, 100]]], dtype=np.uint8)
    shown = Image.fromarray(colors)
    for image in (shown, shown.convert("P", palette=Image.Palette.ADAPTIVE), shown.convert("RGBA")):
        assert load(image).permute(1, 2, 0).tolist() == colors.tolist()
    gray = np.array([[0, 255, 255]], dtype=np.uint8)
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    for image in (Image.fromarray(gray), Image.fromarray(gray).convert("1"), wide):
        assert load(image).tolist() == [gray.tolist()]


def test_tensors_and_arrays_have_values_up_to_255() -> None:
    values = torch.tensor([[[0.0, 3.0, 254.6]]])
    for image in (values, values.long(), values.permute(1, 2, 0).numpy()):
        assert load(image).dtype == torch.uint8
    assert load(values).tolist() == [[[0, 3, 255]]]
    for image, wrong in (
        (values / 255, "values up to 1"),
        (values > 1, "values up to 1"),
        (values - 1, "values from -1 to 253.6"),
        (values.long() + 2, "values from 2 to 256"),
        (values * torch.nan, "values from nan to nan"),
    ):
        with pytest.raises(DataError, match=f"image 0 of list has {wrong}.*scales images"):
            load(image)
