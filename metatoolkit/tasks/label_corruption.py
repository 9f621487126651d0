"""Label noise: transition matrices, corrupted labels, and the task of learning in spite of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    UnknownNameError,
    from_former_name,
    warn_renamed,
)
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.classification import Classification, Split
from metatoolkit.tasks.image_transforms import ImageTransform
from metatoolkit.tasks.labels import check_labels

Kind = Literal["uniform", "flip", "flip2"]
# The smallest number of classes for which each kind is defined.
_KINDS = {"uniform": 2, "flip": 2, "flip2": 3}


@dataclass(frozen=True, eq=False)
class CorruptedLabels:
    """Labels after corruption, with what is known about them.

    Attributes:
        labels: Corrupted labels of shape (examples,), int64.
        clean_labels: Labels before corruption, of the same shape.
        is_corrupted: Where the two differ, bool, of the same shape.
        transition: Probability of a corrupted label (column) given a clean one (row), float64 of
            shape (classes, classes).
    """

    labels: Tensor
    clean_labels: Tensor
    is_corrupted: Tensor
    transition: Tensor


def transition_matrix(kind: Kind, probability: float, classes: int, seed: int = 0) -> Tensor:
    """Return the probabilities with which labels turn into others.

    Args:
        kind: ``"uniform"``: with the probability, a label is replaced by one drawn from all
            classes, itself included, so that a fraction p(C-1)/C is wrong. ``"flip"``: each class
            turns into one other class, drawn for it. ``"flip2"``: each class turns into one of two
            other classes, with half of the probability each.
        probability: Probability p of the above, from 0 to 1.
        classes: Number of classes C.
        seed: Seed of the drawn classes.

    Returns:
        Float64 matrix of shape (classes, classes), whose rows (clean labels) sum to 1.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigurationError: The probability is out of range, or there are too few classes.

    Example:
        >>> transition_matrix("uniform", 0.5, classes=2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    if kind not in _KINDS:
        raise UnknownNameError("kind of label noise", kind, _KINDS)
    if not 0 <= probability <= 1:
        raise ConfigurationError(
            f"probability is {probability}; the noise probability must be from 0 to 1."
        )
    if classes < _KINDS[kind]:
        raise ConfigurationError(
            f"label noise of kind {kind!r} needs at least {_KINDS[kind]} classes; there are "
            f"{classes}."
        )
    matrix = torch.eye(classes, dtype=torch.float64) * (1 - probability)
    if kind == "uniform":
        return matrix + probability / classes
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.TRANSITIONS))
    targets = 1 if kind == "flip" else 2
    for label in range(classes):
        # Adding 1 … C-1 to the label reaches each other class once and never the label itself.
        shifts = 1 + torch.randperm(classes - 1, generator=generator)[:targets]
        matrix[label, (label + shifts) % classes] = probability / targets
    return matrix


def corrupt_labels(
    labels: Tensor,
    classes: int,
    kind: Kind = "uniform",
    probability: float = 0.4,
    seed: int = 0,
) -> CorruptedLabels:
    """Corrupt labels at random, each independently of the others.

    Args:
        labels: Clean labels of shape (examples,), int64, from 0 to ``classes`` - 1.
        classes: Number of classes.
        kind: As in :func:`transition_matrix`.
        probability: As in :func:`transition_matrix`.
        seed: Seed of the transition matrix and of the draws; both differ between seeds.

    Returns:
        The corrupted labels; ``labels`` is not modified.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigurationError: The probability is out of range, or there are too few classes.
        LabelError: A label has no class; the message names the first.
        ShapeError: The labels are not one-dimensional.
        DataError: The labels are not int64.

    Example:
        >>> corrupted = corrupt_labels(torch.arange(10_000) % 4, classes=4, probability=0.4)
        >>> round(float(corrupted.is_corrupted.double().mean()), 1)  # 0.4 · 3/4
        0.3
    """
    matrix = transition_matrix(kind, probability, classes, seed)
    check_labels("labels", labels, classes)
    clean = labels.detach().clone()
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.NOISY_LABELS))
    draws = torch.rand(len(clean), 1, dtype=torch.float64, generator=generator)
    cumulative = matrix.cumsum(dim=1)
    # Rounding must not leave the last possible label of a row out of reach, nor admit one more.
    cumulative = cumulative / cumulative[:, -1:]
    drawn = (draws >= cumulative[clean.cpu()]).sum(dim=1)
    noisy = drawn.to(clean.device)
    return CorruptedLabels(noisy, clean, noisy != clean, matrix)


def set_aside(labels: Tensor, per_class: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Set aside equally many examples of each class.

    Args:
        labels: Clean labels of shape (examples,), int64.
        per_class: Examples of each class to set aside.
        classes: Number of classes.
        seed: Seed of the choice.

    Returns:
        Indices of the remaining (training) examples and of those set aside, both in
        ascending order; no index is in both, and each is in one.

    Raises:
        ConfigurationError: ``per_class`` is negative.
        DataError: A class has too few examples, or none would remain for training.
        LabelError: A label has no class.
        ShapeError: The labels are not one-dimensional.
    """
    if per_class < 0:
        raise ConfigurationError(f"per_class is {per_class}; at least 0 is needed.")
    check_labels("labels", labels, classes)
    labels = labels.cpu()
    if per_class * classes >= len(labels):
        raise DataError(
            f"{per_class} examples for each of {classes} classes are {per_class * classes}, but "
            f"there are {len(labels)} examples, and some must remain for training; lower per_class."
        )
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.VALID_SPLIT))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise DataError(
                f"class {label} has {len(members)} examples, but {per_class} for each class are "
                "to be set aside; lower per_class."
            )
        chosen[members[torch.randperm(len(members), generator=generator)[:per_class]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def split_meta(
    labels: Tensor, per_class: int, classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return what :func:`set_aside` does; the former name, which goes with the next release.

    Args:
        labels: As there.
        per_class: As there.
        classes: As there.
        seed: As there.
    """
    warn_renamed("split_meta", "set_aside")
    return set_aside(labels, per_class, classes, seed)


@dataclass(frozen=True, eq=False)
class NoisyClassification:
    """A classification task whose training labels are noisy.

    The four splits share no example. ``Batches(*task.train, batch_size=...)`` iterates over one.

    Attributes:
        dataset: The data set behind the task.
        train: Images and corrupted labels.
        valid: Images and clean labels for the validation loss, equally many of each class.
        tuning: Images and clean labels to choose settings with, equally many of each class; empty
            unless asked for.
        test: Images and clean labels of the data set's test part.
        clean_labels: Labels of ``train`` before corruption, for diagnosis only.
        is_corrupted: Where the labels of ``train`` are wrong, bool, for diagnosis only.
        transition: Transition matrix as in :class:`CorruptedLabels`.
        train_indices: Places of ``train`` in the data set's training part, ascending.
        valid_indices: Places of ``valid``, likewise.
        tuning_indices: Places of ``tuning``, likewise.
    """

    dataset: Classification
    train: Split
    valid: Split
    tuning: Split
    test: Split
    clean_labels: Tensor
    is_corrupted: Tensor
    transition: Tensor
    train_indices: Tensor
    valid_indices: Tensor
    tuning_indices: Tensor

    @property
    def meta(self) -> Split:
        """Former name of ``valid``, which goes with the next release."""
        warn_renamed("NoisyClassification.meta", "valid")
        return self.valid

    @property
    def meta_indices(self) -> Tensor:
        """Former name of ``valid_indices``, which goes with the next release."""
        warn_renamed("NoisyClassification.meta_indices", "valid_indices")
        return self.valid_indices

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.dataset.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return self.dataset.input_shape

    def transform(self, padding: int = 0, flip: bool = False) -> ImageTransform:
        """Return the data set's transform of image batches.

        Args:
            padding: As in :meth:`Classification.transform`.
            flip: As in :meth:`Classification.transform`.
        """
        return self.dataset.transform(padding=padding, flip=flip)


def label_noise_task(
    dataset: Classification,
    kind: Kind = "flip2",
    probability: float = 0.4,
    *,
    valid_per_class: int | None = None,
    valid_size: int | None = None,
    tuning_per_class: int = 0,
    seed: int = 0,
    meta_per_class: int | None = None,
    meta_size: int | None = None,
) -> NoisyClassification:
    """Corrupt the training labels of a data set and set clean examples aside.

    This is the task of Meta-Weight-Net (Shu et al. 2019, arXiv:1902.07379), with 1,000 clean
    examples for CIFAR. Settings should be chosen on ``tuning``, never on ``test``.

    Args:
        dataset: The data set; its training part must be clean.
        kind: As in :func:`transition_matrix`.
        probability: As in :func:`transition_matrix`.
        valid_per_class: Clean examples of each class for the validation loss.
        valid_size: The same as a total, a multiple of the number of classes. Give one of the two.
        tuning_per_class: Clean examples of each class to choose settings with.
        seed: Seed of the splits, of the transition matrix and of the draws.
        meta_per_class: Former name of ``valid_per_class``, which goes with the next release.
        meta_size: Former name of ``valid_size``, likewise.

    Returns:
        The task; its images share no memory between splits, except ``test``.

    Raises:
        ConfigurationError: Not exactly one of ``valid_per_class`` and ``valid_size`` is given, or
            an argument is out of range.
        UnknownNameError: There is no such kind.
        DataError: There are too few examples.
    """
    classes = dataset.classes
    given = from_former_name("meta_per_class", meta_per_class, "valid_per_class", valid_per_class)
    size = from_former_name("meta_size", meta_size, "valid_size", valid_size)
    per_class = _valid_per_class(given, size, classes)
    if tuning_per_class < 0:
        raise ConfigurationError(f"tuning_per_class is {tuning_per_class}; it cannot be negative.")
    labels = dataset.train_labels
    rest, valid_indices = set_aside(labels, per_class, classes, seed)
    tuning_seed = fold_in(seed, Stream.TUNING_SPLIT)
    kept, held = set_aside(labels[rest], tuning_per_class, classes, tuning_seed)
    train_indices, tuning_indices = rest[kept], rest[held]
    corrupted = corrupt_labels(labels[train_indices], classes, kind, probability, seed)

    def clean(indices: Tensor) -> Split:
        return Split(dataset.train_images[indices], labels[indices])

    return NoisyClassification(
        dataset=dataset,
        train=Split(dataset.train_images[train_indices], corrupted.labels),
        valid=clean(valid_indices),
        tuning=clean(tuning_indices),
        test=dataset.test,
        clean_labels=corrupted.clean_labels,
        is_corrupted=corrupted.is_corrupted,
        transition=corrupted.transition,
        train_indices=train_indices,
        valid_indices=valid_indices,
        tuning_indices=tuning_indices,
    )


def _valid_per_class(per_class: int | None, size: int | None, classes: int) -> int:
    if (per_class is None) == (size is None):
        raise ConfigurationError("give one of valid_per_class and valid_size, not both or neither.")
    if size is not None:
        if size % classes:
            raise ConfigurationError(
                f"valid_size is {size}, no multiple of the {classes} classes; the validation set "
                "holds equally many examples of each."
            )
        per_class = size // classes
    assert per_class is not None
    if per_class < 1:
        raise ConfigurationError(
            "the validation set would be empty; at least 1 of each class is needed."
        )
    return per_class
