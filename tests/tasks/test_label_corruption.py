from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnknownNameError,
)
from metatoolkit.tasks import (
    Classification,
    corrupt_labels,
    label_noise_task,
    load_dataset,
    set_aside,
    split_meta,
    transition_matrix,
)

CLASSES = 10
LABELS = torch.arange(50_000) % CLASSES


@pytest.fixture(scope="module")
def digits() -> Classification:
    return load_dataset("digits")


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - matrix.diag().diag()


@pytest.mark.parametrize("kind", ["uniform", "flip", "flip2"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_rows_of_every_transition_matrix_are_distributions(
    kind: Any, probability: float, classes: int
) -> None:
    matrix = transition_matrix(kind, probability, classes, seed=4)
    assert matrix.shape == (classes, classes)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(classes, dtype=torch.float64))


def test_uniform_noise_replaces_labels_by_any_label() -> None:
    matrix = transition_matrix("uniform", 0.4, CLASSES)
    expected = 0.4 * torch.full((CLASSES, CLASSES), 0.1) + 0.6 * torch.eye(CLASSES)
    torch.testing.assert_close(matrix, expected.double())


@pytest.mark.parametrize(("kind", "targets"), [("flip", 1), ("flip2", 2)])
def test_flips_share_the_probability_among_other_classes(kind: Any, targets: int) -> None:
    for seed in range(20):
        matrix = transition_matrix(kind, 0.4, CLASSES, seed)
        torch.testing.assert_close(matrix.diag(), torch.full((CLASSES,), 0.6, dtype=torch.float64))
        others = off_diagonal(matrix)
        assert ((others > 0).sum(dim=1) == targets).all()
        assert set(others[others > 0].tolist()) == {0.4 / targets}


def test_flip2_of_three_classes_reaches_both_others() -> None:
    assert (transition_matrix("flip2", 0.5, 3) > 0).all()


def test_every_other_class_is_an_equally_likely_target() -> None:
    counts = torch.zeros(5, 5)
    for seed in range(1000):
        counts += off_diagonal(transition_matrix("flip", 1.0, 5, seed)) > 0
    assert (counts.diag() == 0).all()
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert others.min() > 190
    assert others.max() < 310


@pytest.mark.parametrize(("classes", "probability"), [(10, 0.4), (10, 0.6), (100, 0.4), (2, 0.5)])
def test_uniform_noise_corrupts_p_times_c_minus_1_over_c(classes: int, probability: float) -> None:
    corrupted = corrupt_labels(LABELS % classes, classes, "uniform", probability, seed=1)
    rate = float(corrupted.is_corrupted.double().mean())
    assert abs(rate - probability * (classes - 1) / classes) < 0.01


@pytest.mark.parametrize("kind", ["uniform", "flip", "flip2"])
def test_labels_follow_the_transition_matrix(kind: Any) -> None:
    corrupted = corrupt_labels(LABELS, CLASSES, kind, 0.4, seed=2)
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    counts.index_put_(
        (corrupted.clean_labels, corrupted.labels), torch.tensor(1.0).double(), accumulate=True
    )
    frequencies = counts / counts.sum(dim=1, keepdim=True)
    assert (frequencies - corrupted.transition).abs().max() < 0.03
    assert ((counts > 0) == (corrupted.transition > 0)).all()


def test_what_is_known_about_corrupted_labels_is_consistent() -> None:
    labels = LABELS.clone()
    corrupted = corrupt_labels(labels, CLASSES, "flip2", 0.4)
    assert torch.equal(labels, LABELS)
    assert torch.equal(corrupted.clean_labels, LABELS)
    assert torch.equal(corrupted.is_corrupted, corrupted.labels != LABELS)
    assert corrupted.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["uniform", "flip", "flip2"])
def test_probability_0_changes_nothing_and_flip_with_1_changes_all(kind: Any) -> None:
    assert torch.equal(corrupt_labels(LABELS, CLASSES, kind, 0.0).labels, LABELS)
    if kind != "uniform":
        assert corrupt_labels(LABELS, CLASSES, kind, 1.0).is_corrupted.all()


@pytest.mark.parametrize("kind", ["flip", "flip2"])
def test_matrix_and_draws_differ_by_seed_and_repeat_for_one(kind: Any) -> None:
    results = [corrupt_labels(LABELS, CLASSES, kind, 0.4, seed) for seed in range(5)]
    for first, second in itertools.combinations(results, 2):
        assert not torch.equal(first.transition, second.transition)
        assert not torch.equal(first.is_corrupted, second.is_corrupted)
    again = corrupt_labels(LABELS, CLASSES, kind, 0.4, 3)
    assert torch.equal(again.labels, results[3].labels)


def test_uniform_draws_differ_by_seed() -> None:
    first, second = (corrupt_labels(LABELS, CLASSES, "uniform", 0.4, seed) for seed in (0, 1))
    assert not torch.equal(first.is_corrupted, second.is_corrupted)


def test_corruption_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    corrupt_labels(LABELS, CLASSES, "flip2", 0.4)
    set_aside(LABELS, 100, CLASSES)
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_of_corruption_name_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'uniform'\?"):
        corrupt_labels(LABELS, CLASSES, "unifrom")  # type: ignore[arg-type]
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigurationError, match="from 0 to 1"):
            corrupt_labels(LABELS, CLASSES, "flip", probability)
    with pytest.raises(LabelError, match=r"hold 5 at index 2; with 5 classes.*0 to 4"):
        corrupt_labels(torch.tensor([0, 4, 5, -1]), 5)
    with pytest.raises(LabelError, match="hold -1 at index 0"):
        corrupt_labels(torch.tensor([-1, 7]), 5)
    with pytest.raises(ConfigurationError, match="at least 3 classes"):
        corrupt_labels(LABELS % 2, 2, "flip2")
    with pytest.raises(ShapeError, match="labels have shape"):
        corrupt_labels(LABELS.view(-1, 1), CLASSES)
    with pytest.raises(DataError, match=r"float32; an int64 tensor is needed.*long"):
        corrupt_labels(LABELS.float(), CLASSES)
    with pytest.raises(DataError, match="labels are a list"):
        corrupt_labels([0, 1], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_meta_and_train_indices_are_disjoint_and_balanced_for_every_seed(seed: int) -> None:
    train, meta = set_aside(LABELS, 100, CLASSES, seed)
    assert len(train) == 49_000
    assert not set(train.tolist()) & set(meta.tolist())
    assert torch.equal(torch.cat([train, meta]).sort().values, torch.arange(50_000))
    assert LABELS[meta].bincount().tolist() == [100] * CLASSES


def test_meta_sets_differ_by_seed() -> None:
    first, second = (set_aside(LABELS, 100, CLASSES, seed)[1] for seed in (1, 2))
    assert len(set(first.tolist()) & set(second.tolist())) < 100


def test_a_meta_set_must_leave_training_data() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    train, meta = set_aside(labels, 2, 2)
    assert len(train) == 1
    assert len(meta) == 4
    with pytest.raises(DataError, match="class 1 has 2 examples, but 3"):
        set_aside(torch.tensor([0, 0, 0, 0, 0, 1, 1]), 3, 2)
    with pytest.raises(DataError, match="are 6, but there are 5 examples"):
        set_aside(labels, 3, 2)
    with pytest.raises(DataError, match="some must remain"):
        set_aside(torch.tensor([0, 0, 1, 1]), 2, 2)
    with pytest.raises(ConfigurationError, match="per_class is -1"):
        set_aside(labels, -1, 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_four_splits_share_no_image(digits: Classification, seed: int) -> None:
    task = label_noise_task(digits, "flip2", 0.4, valid_per_class=10, tuning_per_class=5, seed=seed)
    places = torch.cat([task.train_indices, task.valid_indices, task.tuning_indices])
    assert torch.equal(places.sort().values, torch.arange(len(digits.train_labels)))
    assert [len(split.labels) for split in (task.valid, task.tuning)] == [100, 50]
    assert task.valid.labels.bincount().tolist() == [10] * 10
    assert task.tuning.labels.bincount().tolist() == [5] * 10
    for split, indices in (
        (task.train, task.train_indices),
        (task.valid, task.valid_indices),
        (task.tuning, task.tuning_indices),
    ):
        assert torch.equal(split.images, digits.train_images[indices])
    assert torch.equal(task.valid.labels, digits.train_labels[task.valid_indices])
    assert torch.equal(task.tuning.labels, digits.train_labels[task.tuning_indices])
    assert torch.equal(task.clean_labels, digits.train_labels[task.train_indices])
    assert torch.equal(task.is_corrupted, task.train.labels != task.clean_labels)
    assert torch.equal(task.test.labels, digits.test_labels)
    assert 0.3 < task.is_corrupted.double().mean() < 0.5


def test_the_task_repeats_for_one_seed_and_differs_between_seeds(digits: Classification) -> None:
    first, again, other = (
        label_noise_task(digits, "flip", 0.4, valid_size=100, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.valid_indices, again.valid_indices)
    assert not torch.equal(first.valid_indices, other.valid_indices)
    assert not torch.equal(first.transition, other.transition)


def test_valid_size_and_valid_per_class_say_the_same(digits: Classification) -> None:
    first = label_noise_task(digits, valid_size=100)
    second = label_noise_task(digits, valid_per_class=10)
    assert torch.equal(first.valid_indices, second.valid_indices)
    assert len(first.tuning.labels) == 0
    assert first.classes == 10
    assert first.input_shape == (1, 8, 8)
    assert first.transform(padding=1).padding == 1


def test_errors_of_the_task_name_what_is_wrong(digits: Classification) -> None:
    with pytest.raises(ConfigurationError, match="not both or neither"):
        label_noise_task(digits)
    with pytest.raises(ConfigurationError, match="not both or neither"):
        label_noise_task(digits, valid_per_class=1, valid_size=10)
    with pytest.raises(ConfigurationError, match="no multiple of the 10 classes"):
        label_noise_task(digits, valid_size=105)
    with pytest.raises(ConfigurationError, match="validation set would be empty"):
        label_noise_task(digits, valid_size=0)
    with pytest.raises(ConfigurationError, match="tuning_per_class is -1"):
        label_noise_task(digits, valid_size=100, tuning_per_class=-1)
    with pytest.raises(DataError, match="are 2000, but there are 1438 examples"):
        label_noise_task(digits, valid_size=2000)
    with pytest.raises(DataError, match="to be set aside"):
        label_noise_task(digits, valid_per_class=140, tuning_per_class=3)


def test_a_data_set_with_a_label_out_of_range_is_refused(digits: Classification) -> None:
    labels = digits.train_labels.clone()
    labels[17] = 10
    with pytest.raises(LabelError, match="train_labels of digits hold 10 at index 17"):
        dataclasses.replace(digits, train_labels=labels)


def test_former_names_of_validation_data_warn_and_give_the_same(digits: Classification) -> None:
    task = label_noise_task(digits, valid_per_class=3)
    for former in ({"meta_per_class": 3}, {"meta_size": 30}):
        (name,) = former
        with pytest.warns(DeprecationWarning, match=f"{name}= is {name.replace('meta', 'valid')}="):
            again = label_noise_task(digits, **former)
        assert torch.equal(again.valid_indices, task.valid_indices)
    with pytest.warns(DeprecationWarning, match=r"NoisyClassification\.meta is valid now"):
        assert task.meta is task.valid
    with pytest.warns(DeprecationWarning, match=r"meta_indices is valid_indices now"):
        assert task.meta_indices is task.valid_indices
    with pytest.warns(DeprecationWarning, match="split_meta is set_aside now"):
        former_split = split_meta(LABELS, 5, CLASSES, 2)
    for one, other in zip(former_split, set_aside(LABELS, 5, CLASSES, 2), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ConfigurationError, match="meta_size is the former name of valid_size"):
        label_noise_task(digits, meta_size=30, valid_size=30)
