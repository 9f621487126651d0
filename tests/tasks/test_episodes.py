from __future__ import annotations

import collections
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    MissingDependencyError,
    UnknownNameError,
)
from metatoolkit.tasks import (
    Domain,
    Episode,
    EpisodeBatches,
    pseudo_domains,
)
from tests.tasks.images import numbered_domain
from tests.tasks.taken import raw, same, take


def domains(count: int = 3) -> dict[str, Domain]:
    return {f"d{i}": numbered_domain(f"d{i}", offset=10 * i) for i in range(count)}


# One episode.


@pytest.mark.parametrize(("split", "number"), [("train", 0), ("valid", 1), ("test", 2)])
def test_an_episode_has_distinct_classes_and_images_of_its_split(split: str, number: int) -> None:
    batches = EpisodeBatches(domains(1), split, ways=3, shots=2, queries=4, transform=raw)
    for episode in take(batches, 30):
        assert episode.support.shape == (3, 2, 1, 2, 2)
        assert episode.query.shape == (3, 4, 1, 2, 2)
        both = torch.cat(tuple(episode), dim=1)[:, :, 0]
        assert (both[:, :, 0, 0] == number).all()
        labels = both[:, :, 0, 1]
        assert (labels == labels[:, :1]).all()
        assert len(labels[:, 0].unique()) == 3
        places = both[:, :, 1, 0].flatten()
        assert len(places.unique()) == 18
        assert torch.equal(places // 6, labels.flatten())


def test_every_class_order_and_image_is_drawn_equally_often() -> None:
    batches = EpisodeBatches(numbered_domain("d"), "train", 2, 1, 1, transform=raw)
    episodes = take(batches, 3000)
    ordered = collections.Counter(
        tuple(episode.support[:, 0, 0, 0, 1].tolist()) for episode in episodes
    )
    images = collections.Counter(
        place for episode in episodes for place in episode.query[:, 0, 0, 1, 0].tolist()
    )
    # 12 ordered pairs of classes and 24 images: five standard deviations are 76 and 78.
    assert len(ordered) == 12
    assert all(abs(count - 250) < 76 for count in ordered.values())
    assert len(images) == 24
    assert all(abs(count - 250) < 78 for count in images.values())


def test_images_are_floating_point_between_0_and_1_unless_transformed() -> None:
    plain = next(EpisodeBatches(domains(1), "train", 2, 1, 2, seed=3))
    assert plain.support.dtype == torch.float32
    bare = next(EpisodeBatches(domains(1), "train", 2, 1, 2, seed=3, transform=raw))
    assert torch.equal((plain.query * 255).round().to(torch.uint8), bare.query)


def test_a_transform_gets_all_images_at_once_and_a_generator_of_its_episode() -> None:
    def noise(images: Tensor, generator: torch.Generator) -> Tensor:
        assert images.shape == (6, 1, 2, 2)
        return torch.rand(images.shape, generator=generator)

    batches = EpisodeBatches(domains(), "train", 2, 1, 2, transform=noise)
    first, second = take(batches, 2)
    assert not torch.equal(first.support, second.support)
    batches.reseed(0)
    assert same([first, second], take(batches, 2))


# Randomness.


def test_episode_i_depends_on_the_seed_and_on_i_alone() -> None:
    def make(seed: int) -> EpisodeBatches:
        return EpisodeBatches(domains(), "train", 2, 1, 2, seed=seed, transform=raw)

    episodes = take(make(4), 8)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(episodes, take(make(4), 8))
    assert not same(episodes, take(make(5), 8))
    reordered = EpisodeBatches(
        reversed(domains().values()), "train", 2, 1, 2, seed=4, transform=raw
    )
    assert same(episodes, take(reordered, 8))


def test_the_global_random_state_is_untouched_even_by_the_import() -> None:
    batches = pseudo_domains(domains(), "train", 2, 1, 2, seed=0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for stream in (*batches, EpisodeBatches(domains(), "test", 2, 1, 2)):
        take(stream, 3)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert states == after


def test_the_import_is_quick_and_no_banner_is_seen() -> None:
    program = (
        "import sys, metatoolkit, metatoolkit.tasks\n"
        "assert not {'learn2learn', 'gym', 'sklearn', 'torchvision'} & set(sys.modules)\n"
        "import random, torch\n"
        "random.seed(5)\n"
        "state = random.getstate()\n"
        "from tests.tasks.images import numbered_domain\n"
        "from metatoolkit.tasks import EpisodeBatches\n"
        "next(EpisodeBatches(numbered_domain('d'), 'train', 2, 1, 1))\n"
        "assert 'learn2learn' in sys.modules\n"
        "assert random.getstate() == state\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_learn2learn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"EpisodeBatches needs learn2learn.*requirements-learn2learn\.txt",
    ):
        EpisodeBatches(domains(), "train", 2, 1, 2)


# The place of an iterator.


def test_resume_is_bitwise_at_any_episode() -> None:
    batches = EpisodeBatches(domains(), "train", 3, 1, 2, seed=7)
    episodes = take(batches, 12)
    for number in (0, 1, 7):
        batches.reseed(7)
        take(batches, number)
        stored = pickle.loads(pickle.dumps(batches.state_dict()))
        restored = EpisodeBatches(domains(), "train", 3, 1, 2, seed=99)
        restored.load_state_dict(stored)
        assert same(take(restored, 12 - number), episodes[number:])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"split": "test"}, "split"),
        ({"ways": 3}, "ways"),
        ({"shots": 2}, "shots"),
        ({"queries": 1}, "queries"),
        ({"domains": domains(2)}, "domains"),
    ],
)
def test_a_state_of_other_episodes_is_refused(change: dict[str, Any], name: str) -> None:
    mine: dict[str, Any] = {
        "domains": domains(),
        "split": "train",
        "ways": 2,
        "shots": 1,
        "queries": 2,
    }
    stored = EpisodeBatches(**mine).state_dict()
    with pytest.raises(CheckpointError, match=f"{name}="):
        EpisodeBatches(**(mine | change)).load_state_dict(stored)


def test_a_state_of_something_else_is_refused() -> None:
    seen, unseen = pseudo_domains(domains(), "train", 2, 1, 2)
    with pytest.raises(CheckpointError, match="role="):
        unseen.load_state_dict(seen.state_dict())
    with pytest.raises(CheckpointError, match="no state of EpisodeBatches"):
        seen.load_state_dict({"epoch": 3})


# Several domains.


def domain_number(episode: Episode) -> int:
    return int(episode.support[0, 0, 0, 0, 0]) // 10


def test_an_episode_is_of_one_domain_and_each_is_drawn_equally_often() -> None:
    batches = EpisodeBatches(domains(), "train", 2, 1, 2, transform=raw)
    episodes = take(batches, 900)
    for number, episode in enumerate(episodes[:50]):
        every = torch.cat((episode.support, episode.query), dim=1)[:, :, 0, 0, 0]
        assert (every == every[0, 0]).all()
        assert batches.domain_of(number) == f"d{domain_number(episode)}"
    counts = collections.Counter(map(domain_number, episodes))
    # Five standard deviations are 71.
    assert all(abs(counts[number] - 300) < 71 for number in range(3))


def test_pseudo_seen_and_pseudo_unseen_episodes_come_from_two_domains() -> None:
    seen, unseen = pseudo_domains(domains(), "train", 2, 1, 2, transform=raw)
    pairs = collections.Counter(
        (domain_number(next(seen)), domain_number(next(unseen))) for _ in range(600)
    )
    # Five standard deviations are 46.
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert all(abs(count - 100) < 46 for count in pairs.values())
    assert seen.domain_of(3) != unseen.domain_of(3)


def test_a_pair_of_domains_may_last_for_several_episodes() -> None:
    seen, unseen = pseudo_domains(domains(), "train", 2, 1, 2, transform=raw, period=10)
    pairs = [(domain_number(next(seen)), domain_number(next(unseen))) for _ in range(200)]
    for start in range(0, 200, 10):
        assert len(set(pairs[start : start + 10])) == 1
    assert len(set(pairs)) > 3


def test_pseudo_domains_resume_in_step_and_have_transforms_of_their_own() -> None:
    def make(seed: int) -> tuple[EpisodeBatches, EpisodeBatches]:
        return pseudo_domains(domains(), "train", 2, 1, 2, seed, raw, lambda images, _: images + 1)

    first = make(3)
    rest = [take(stream, 9)[5:] for stream in first]
    second = make(0)
    for old, new in zip(make(3), second, strict=True):
        take(old, 5)
        new.load_state_dict(old.state_dict())
    assert all(same(take(stream, 4), part) for stream, part in zip(second, rest, strict=True))
    assert int(rest[0][0].support[0, 0, 0, 1, 1]) == 0
    assert int(rest[1][0].support[0, 0, 0, 1, 1]) == 1


# Errors.


def test_numbers_out_of_range() -> None:
    for name, value in (("ways", 1), ("shots", 0), ("queries", 0), ("ways", 2.0), ("shots", True)):
        sizes: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 1} | {name: value}
        with pytest.raises(ConfigurationError, match=f"{name} is {value!r}"):
            EpisodeBatches(domains(), "train", **sizes)
    with pytest.raises(ConfigurationError, match="period is 0"):
        pseudo_domains(domains(), "train", 2, 1, 2, period=0)


def test_fewer_classes_than_ways_and_fewer_images_than_shots_and_queries() -> None:
    with pytest.raises(DataError, match=r"'valid' of domain 'd0' has 4 classes, fewer .* 5 ways"):
        EpisodeBatches(domains(), "valid", 5, 1, 2)
    with pytest.raises(DataError, match=r"class '0\.0' .* 'd0' has 6 images, fewer than the 7"):
        EpisodeBatches(domains(), "train", 4, 2, 5)
    EpisodeBatches(domains(), "train", 4, 2, 4)


def test_a_split_or_domains_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"split 'vald'.*Did you mean 'valid'"):
        EpisodeBatches(domains(), "vald", 2, 1, 2)
    with pytest.raises(DataError, match="no domain was given"):
        EpisodeBatches({}, "train", 2, 1, 2)
    with pytest.raises(DataError, match="two domains are called 'd0'"):
        EpisodeBatches([*domains().values(), *domains(1).values()], "train", 2, 1, 2)
    names: Any = ["digits"]
    with pytest.raises(ConfigurationError, match="'digits' is no Domain"):
        EpisodeBatches(names, "train", 2, 1, 2)
    with pytest.raises(ConfigurationError, match="only the domain 'd0'"):
        pseudo_domains(domains(1), "train", 2, 1, 2)
