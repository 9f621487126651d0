"""Tasks in another floating-point type."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.tasks import (
    ConvertedTasks,
    FewShotTasks,
    FunctionTasks,
    MixedTasks,
    PrefetchedTasks,
)
from tests.tasks.images import numbered_domain


def functions(tasks: int = 4, shots: int = 2, seed: int = 3) -> FunctionTasks:
    return FunctionTasks("sinusoid", shots=shots, queries=2, tasks=tasks, seed=seed)


def check_doubled(found: Any, source: Any) -> None:
    pairs = (zip(*parts, strict=True) for parts in zip(found, source, strict=True))
    for one, other in itertools.chain(*pairs):
        assert one.dtype == torch.float64 and torch.equal(one, other.double())


def test_tasks_are_those_of_the_source_in_the_other_type() -> None:
    converted = ConvertedTasks(functions(), torch.float64)
    for place in (0, 4):
        check_doubled(next(converted), functions().batch(place, 4))
    check_doubled(converted.task(7), functions().task(7))


def test_labels_and_masks_stay_as_they_are() -> None:
    images = FewShotTasks(numbered_domain("d"), "train", 3, 1, 2, tasks=2)
    (pixels, labels), _ = next(ConvertedTasks(images, torch.float64))
    assert (pixels.dtype, labels.dtype) == (torch.float64, torch.int64)
    mixed = MixedTasks([functions(shots=2), functions(shots=5)], tasks=6, padded=True)
    (inputs, _, mask), _ = next(ConvertedTasks(mixed, torch.float64))
    assert (inputs.dtype, mask.dtype) == (torch.float64, torch.bool)
    assert set(mask.sum(dim=1).tolist()) == {2, 5}


def test_they_start_over_with_another_seed() -> None:
    converted = ConvertedTasks(functions(), torch.float64)
    next(converted)
    converted.reseed(9)
    check_doubled(next(converted), functions(seed=9).batch(0, 4))


def test_a_stored_place_fits_the_source_too() -> None:
    converted, source = ConvertedTasks(functions(), torch.float64), functions()
    next(converted)
    for one in (source, again := ConvertedTasks(functions(seed=1), torch.float64)):
        one.load_state_dict(converted.state_dict())
    expected = next(converted)
    check_doubled(expected, next(source))
    check_doubled(next(again), functions().batch(4, 4))
    with pytest.raises(CheckpointError, match="shots=2, these have shots=3"):
        ConvertedTasks(functions(shots=3), torch.float64).load_state_dict(converted.state_dict())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_make_them_ahead() -> None:
    with PrefetchedTasks(ConvertedTasks(functions(), torch.float64), workers=1) as ahead:
        for place in (0, 4):
            check_doubled(next(ahead), functions().batch(place, 4))


@pytest.mark.parametrize("dtype", [torch.int64, "float64", None])
def test_another_kind_of_type_is_refused(dtype: Any) -> None:
    with pytest.raises(ConfigurationError, match="a floating-point type is needed"):
        ConvertedTasks(functions(), dtype)


def test_what_is_no_source_is_refused() -> None:
    source: Any = [functions().task(0)]
    with pytest.raises(ConfigurationError, match="source is a list"):
        ConvertedTasks(source, torch.float64)
