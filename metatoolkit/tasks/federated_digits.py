"""Users of scikit-learn's digits, each with few classes and a slant of its own."""

from __future__ import annotations

import math
import random

import torch
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.metaparameters.image_rotation import rotate
from metatoolkit.networks.metric_heads import query_labels
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.array_parts import held_out_mask
from metatoolkit.tasks.datasets import load_dataset
from metatoolkit.tasks.task_source import Task, TaskSource, check_integers

SPLITS = ("train", "valid", "test")
_VALID_FRACTION = 0.25


class FederatedDigits(TaskSource):
    """Digits that are not independent and identically distributed over users (federated learning).

    A task is a user, who has some of the ten digits and turns all images by one angle. Labels are
    the digits, so that one model can serve all users, and be personalized by what a user has. The
    splits have no image in common: three fifths of each digit, one fifth and one fifth. Users of a
    split share its images. Images are standardized, of shape (examples, 1, 8, 8), class by class;
    labels are int64 of shape (examples,).

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        classes: Digits that a user has.
        shots: Support images of each.
        queries: Query images of each.
        tasks: Users per batch.
        seed: Seed of the users.
        angle: Largest angle, in degrees either way; it is uniform.

    Raises:
        ConfigurationError: A number is out of range.
        UnknownNameError: There is no such split.
        DataError: A digit has fewer images than ``shots + queries``.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> users = FederatedDigits("train", classes=2, shots=3, queries=5, tasks=4)
        >>> (images, labels), query = next(users)
        >>> images.shape, labels.shape, query[0].shape
        (torch.Size([4, 6, 1, 8, 8]), torch.Size([4, 6]), torch.Size([4, 10, 1, 8, 8]))
    """

    kept = ("tasks", "split", "classes", "shots", "queries", "angle")

    def __init__(
        self,
        split: str,
        *,
        classes: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        angle: float = 30.0,
    ) -> None:
        check_integers(1, classes=classes, shots=shots, queries=queries)
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        if not 0 <= angle <= 180:
            raise ConfigurationError(f"angle is {angle}; degrees from 0 to 180 are needed.")
        digits = load_dataset("digits")
        if classes > digits.classes:
            raise ConfigurationError(f"classes is {classes}; there are {digits.classes} digits.")
        images, labels = digits.train_images, digits.train_labels
        if split == "test":
            images, labels = digits.test_images, digits.test_labels
        else:
            valid = held_out_mask(labels, digits.class_names, _VALID_FRACTION)
            chosen = valid if split == "valid" else ~valid
            images, labels = images[chosen], labels[chosen]
        self._images = images
        self._members = [(labels == c).nonzero().flatten().tolist() for c in range(digits.classes)]
        least = min(map(len, self._members))
        if least < shots + queries:
            raise DataError(
                f"a digit has {least} images in the split {split!r}, fewer than the "
                f"{shots + queries} of shots and queries; lower these."
            )
        self._background = -digits.mean[0] / digits.std[0]
        self.split, self.classes, self.angle = split, classes, angle
        self.shots, self.queries = shots, queries
        super().__init__(tasks, seed)

    @override
    def task(self, number: int) -> Task:
        draw = random.Random(fold_in(self.seed, Stream.FEDERATED_USERS, number))
        digits = sorted(draw.sample(range(len(self._members)), self.classes))
        each = self.shots + self.queries
        places = [place for digit in digits for place in draw.sample(self._members[digit], each)]
        angle = math.radians(draw.uniform(-self.angle, self.angle))
        images = rotate(self._images[places], angle, fill=self._background)
        images = images.unflatten(0, (self.classes, each))
        known, asked = (
            torch.tensor(digits)[query_labels(self.classes, count)]
            for count in (self.shots, self.queries)
        )
        return (images[:, : self.shots].flatten(0, 1), known), (
            images[:, self.shots :].flatten(0, 1),
            asked,
        )
