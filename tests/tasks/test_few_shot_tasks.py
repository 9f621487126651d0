"""Batches of few-shot tasks: the episodes they are made of, and what support sets go through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    LabelError,
    UnknownNameError,
)
from metatoolkit.tasks import Domain, EpisodeBatches, FewShotTasks, ImageSet, domain_of
from tests.tasks.images import numbered_domain
from tests.tasks.taken import raw

SIZES = {"ways": 3, "shots": 2, "queries": 4}


def make(domain: Domain | None = None, tasks: int = 5, **options: Any) -> FewShotTasks:
    options = {"transform": raw, **SIZES, **options}
    return FewShotTasks(domain or numbered_domain("d"), "train", tasks=tasks, **options)


def same(first: Any, second: Any) -> bool:
    pairs = [
        (a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_holds_the_episodes_in_their_order_with_labels_from_0_on() -> None:
    batches = make(seed=3)
    episodes = EpisodeBatches(numbered_domain("d"), "train", *SIZES.values(), 3, raw)
    for _ in range(2):
        (images, labels), (query_images, query_labels) = next(batches)
        assert images.shape == (5, 6, 1, 2, 2) and query_images.shape == (5, 12, 1, 2, 2)
        for task in range(5):
            episode = next(episodes)
            for way in range(3):
                mine = images[task][labels[task] == way]
                assert torch.equal(mine, episode.support[way])
                mine = query_images[task][query_labels[task] == way]
                assert torch.equal(mine, episode.query[way])


def test_task_n_depends_on_the_seed_and_on_n_alone() -> None:
    one, many = make(tasks=1, seed=2), make(tasks=4, seed=2)
    batch = next(many)
    for number in range(4):
        alone = next(one)
        assert same(alone, [[part[number : number + 1] for part in pair] for pair in batch])
    assert not same(batch, next(make(tasks=4, seed=3)))


def test_a_stored_place_is_found_again() -> None:
    def turned(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + torch.rand(1, generator=generator)

    options = {"seed": 7, "support_transform": turned}
    batches = make(**options)
    next(batches)
    place = batches.state_dict()
    expected = [next(batches) for _ in range(3)]
    other = make(seed=1, support_transform=turned)
    other.load_state_dict(place)
    assert all(same(batch, next(other)) for batch in expected)
    batches.reseed(1)
    assert same(next(batches), next(make(seed=1, support_transform=turned)))
    for wrong in (make(tasks=4), make(shots=1), make(numbered_domain("e"))):
        with pytest.raises(CheckpointError, match="the stored tasks have"):
            wrong.load_state_dict(place)


def test_augmentation_of_the_support_set_leaves_queries_and_draws_as_they_are() -> None:
    seen = []

    def brighter(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(torch.rand(1, generator=generator).item())
        return images + 100

    (plain, labels), query = next(make(seed=1))
    (images, own_labels), own_query = next(make(seed=1, support_transform=brighter))
    assert torch.equal(images, plain + 100) and torch.equal(labels, own_labels)
    assert same([query], [own_query])
    # Each task draws numbers of its own.
    assert len(set(seen)) == 5


def test_splits_hold_whole_groups_of_classes() -> None:
    names = tuple(f"{letter}/{number}" for letter in "dbca" for number in range(3))
    labels = torch.arange(12).repeat_interleave(2)
    pixels = labels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8)
    images = ImageSet(pixels.contiguous(), labels, names)
    domain = domain_of("letters", images, lambda name: name[0])
    assert domain.train.class_names == tuple(f"{x}/{n}" for x in "ac" for n in range(3))
    assert domain.valid.class_names == ("b/0", "b/1", "b/2")
    assert domain.test.class_names == ("d/0", "d/1", "d/2")
    # Labels of the images still say the class that they had.
    found = [names[int(domain.test.load([place])[0].flatten()[0])] for place in range(6)]
    expected = [domain.test.class_names[label] for label in domain.test.labels.tolist()]
    assert found == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": 0}, ConfigurationError, "tasks is 0; an integer from 1 on"),
        ({"tasks": True}, ConfigurationError, "tasks is True"),
        ({"ways": 5}, DataError, "4 classes, fewer than the 5 ways"),
        ({"ways": 1}, ConfigurationError, "ways is 1; an integer from 2 on"),
        ({"shots": 0}, ConfigurationError, "shots is 0"),
        ({"shots": 3}, DataError, "6 images, fewer than the 7 of shots and queries"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_an_unknown_split_is_said() -> None:
    with pytest.raises(UnknownNameError, match="trian"):
        FewShotTasks(numbered_domain("d"), "trian", **SIZES, tasks=2)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_too_few_outputs_are_told_with_the_task(batching: Any) -> None:
    loss = mt.losses.cross_entropy
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    maml = mt.algorithms.build("maml", model, loss, loss, lr=0.1, steps=1)
    batch = next(make(transform=None, tasks=3))
    with pytest.raises(LabelError, match=r"labels of the batch hold 2.*with 2 classes") as caught:
        mt.over_tasks(maml.problem, maml.inner, maml.estimator, batch, batching)
    assert caught.value.__notes__ == ["in task 0 of the batch"]
