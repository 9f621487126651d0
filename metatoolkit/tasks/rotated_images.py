"""Upright images to train on, rotated ones to do well on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.metaparameters.image_rotation import Interpolation, rotate
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.classification import Classification, Split


@dataclass(frozen=True, eq=False)
class RotatedClassification:
    """Upright training images, and other ones that are rotated by one angle.

    All images are float32 and normalized. Each rotated one was rotated once, from its original;
    nothing outside of the images is rotated in but their background.

    Attributes:
        dataset: What the images are from.
        degrees: The angle, counterclockwise.
        background: Value of a black pixel per channel, after normalization.
        train: Upright images for the inner loss.
        valid: Rotated images for the outer loss.
        tuning: Rotated images to choose settings by; empty if none were asked for.
        test: Rotated test images.
        test_upright: The same test images, never rotated.
        train_indices: Places of the training images in the data set's training part.
        valid_indices: Places of the validation images there.
        tuning_indices: Places of the tuning images there.
    """

    dataset: Classification
    degrees: float
    background: tuple[float, ...]
    train: Split
    valid: Split
    tuning: Split
    test: Split
    test_upright: Split
    train_indices: Tensor
    valid_indices: Tensor
    tuning_indices: Tensor


def rotation_task(
    dataset: Classification,
    degrees: float = 30.0,
    *,
    valid: int,
    tuning: int = 0,
    seed: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> RotatedClassification:
    """Split a data set into upright training and rotated validation, tuning and test images.

    Args:
        dataset: Data set.
        degrees: Angle of the rotated images, counterclockwise.
        valid: Number of validation images: the last ones in the order below.
        tuning: Number of tuning images: those before the validation images.
        seed: Seed of the order of the training part; ``None`` keeps that of the data set, which
            for MNIST with ``valid`` and ``tuning`` 10,000 is the split of Bohdal et al. 2021.
        interpolation: How rotated images are sampled.

    Returns:
        The splits; no image is in two of train, valid and tuning.

    Raises:
        ConfigurationError: ``valid`` is less than 1, ``tuning`` is negative, or an argument of
            :func:`metatoolkit.tasks.rotate` is not accepted.
        DataError: There are too few training images.

    Example:
        >>> from metatoolkit.tasks import load_dataset
        >>> task = rotation_task(load_dataset("digits"), degrees=30.0, valid=100)
        >>> len(task.valid.labels), task.valid.images.shape[1:]
        (100, torch.Size([1, 8, 8]))
    """
    if valid < 1 or tuning < 0:
        raise ConfigurationError(
            f"valid is {valid}, tuning is {tuning}; at least 1 validation image and no negative "
            "number are needed."
        )
    count = len(dataset.train_labels)
    if valid + tuning >= count:
        raise DataError(
            f"{dataset.name} has {count} training images; {valid} for validation and {tuning} for "
            "tuning leave none to train on. Lower these numbers."
        )
    if seed is None:
        order = torch.arange(count)
    else:
        generator = torch.Generator().manual_seed(fold_in(seed, Stream.ROTATED_SPLIT))
        order = torch.randperm(count, generator=generator)
    sizes = [count - valid - tuning, tuning, valid]
    train_indices, tuning_indices, valid_indices = order.split(sizes)
    transform = dataset.transform()
    background = tuple(-mean / std for mean, std in zip(dataset.mean, dataset.std, strict=True))

    def upright(split: Split, indices: Tensor | None = None) -> Split:
        images, labels = split if indices is None else (part[indices] for part in split)
        return Split(transform(images), labels)

    def rotated(split: Split, indices: Tensor | None = None) -> Split:
        images, labels = upright(split, indices)
        if len(labels) == 0:
            return Split(images, labels)
        angle = math.radians(degrees)
        return Split(rotate(images, angle, fill=background, interpolation=interpolation), labels)

    return RotatedClassification(
        dataset=dataset,
        degrees=degrees,
        background=background,
        train=upright(dataset.train, train_indices),
        valid=rotated(dataset.train, valid_indices),
        tuning=rotated(dataset.train, tuning_indices),
        test=rotated(dataset.test),
        test_upright=upright(dataset.test),
        train_indices=train_indices,
        valid_indices=valid_indices,
        tuning_indices=tuning_indices,
    )
