"""Data sets of learn2learn as domains."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from metatoolkit.errors import (
    DataError,
    UnknownNameError,
)
from metatoolkit.tasks import (
    EpisodeBatches,
    learn2learn_domain,
)
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
