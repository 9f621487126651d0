"""Images as tasks: values of pixels by their places."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError, DataError, UnknownNameError
from metatoolkit.tasks import Domain, ImageSet, PixelTasks

# The value of a pixel tells its image, row, column and channel.
SHAPE = (5, 2, 3, 4)
PIXELS = (torch.arange(120).view(SHAPE) * 2).to(torch.uint8)


def images(names: str) -> ImageSet:
    return ImageSet(PIXELS, torch.tensor([0, 0, 1, 1, 1]), tuple(names))


DOMAIN = Domain("counted", images("ab"), images("cd"), images("ef"))


def make(
    domain: Domain = DOMAIN, split: str = "train", tasks: int = 3, **options: Any
) -> PixelTasks:
    return PixelTasks(domain, split, **{"shots": 4, "queries": 8, "tasks": tasks, **options})


def test_a_task_is_the_pixels_of_one_image_each_once() -> None:
    source = make(seed=1)
    seen = []
    for number in range(10):
        support, query = source.task(number)
        assert [tuple(part.shape) for part in (*support, *query)] == [
            (4, 2),
            (4, 2),
            (8, 2),
            (8, 2),
        ]
        inputs, targets = (torch.cat(parts) for parts in zip(support, query, strict=True))
        values = (targets * 255 / 2).round().long()
        image = int(values[0, 0]) // 24
        rows, columns = (inputs[:, 0] + 1).long(), ((inputs[:, 1] + 1) * 1.5).round().long()
        place = 24 * image + 4 * rows + columns
        assert torch.equal(values, torch.stack((place, place + 12), dim=1))
        assert len(place.unique()) == 12
        seen.append(image)
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))


def test_task_n_depends_on_the_seed_and_on_n_alone_and_a_place_is_found_again() -> None:
    before = torch.get_rng_state()
    batches = make(seed=4)
    first = next(batches)
    assert torch.equal(first[0][0][2], make(seed=4).task(2)[0][0])
    place = batches.state_dict()
    expected = next(batches)
    other = make(seed=0)
    other.load_state_dict(place)
    for one, two in zip(expected, next(other), strict=True):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(first[0][1], next(make(seed=5))[0][1])
    assert torch.equal(before, torch.get_rng_state())
    renamed = Domain("other", DOMAIN.train, DOMAIN.valid, DOMAIN.test)
    for wrong in (make(split="test"), make(renamed), make(shots=3)):
        with pytest.raises(CheckpointError, match="the stored tasks have"):
            wrong.load_state_dict(place)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"queries": 9}, DataError, r"image \d in the split 'train' of .* has 12 pixels, fewer"),
        ({"split": "tset"}, UnknownNameError, "Did you mean 'test'"),
        ({"shots": 0}, ConfigurationError, "shots is 0"),
        ({"queries": 0}, ConfigurationError, "queries is 0"),
        ({"tasks": 0}, ConfigurationError, "tasks is 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)
