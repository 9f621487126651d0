"""Domains: kinds of images, each with classes of its own for training, validation and test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnknownNameError
from metatoolkit.tasks.labels import check_labels

SPLITS = ("train", "valid", "test")


class LabeledImages(Protocol):
    """What a split of a domain has to offer; images may be read when they are asked for."""

    @property
    def labels(self) -> Tensor:
        """Labels of shape (images,), int64, from 0 on."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each label."""

    def load(self, indices: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images, uint8 or floating point, of shape (images, channels, height, width).

        A list of images of shape (channels, height, width) where their sizes differ.

        Args:
            indices: Places of the images.
        """


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labeled images in memory.

    Attributes:
        images: Images of shape (images, channels, height, width), uint8 or floating point.
        labels: Labels of shape (images,), int64, from 0 on.
        class_names: One name for each label.

    Raises:
        ShapeError: Images and labels do not fit together.
        LabelError: A label has no class.
        DataError: The labels are not int64.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dim() != 4:
            raise ShapeError(
                f"images have shape {tuple(self.images.shape)}; (images, channels, height, width) "
                "is needed."
            )
        check_labels("labels", self.labels, len(self.class_names))
        if len(self.images) != len(self.labels):
            raise ShapeError(
                f"there are {len(self.images)} images and {len(self.labels)} labels; one label "
                "for each image is needed."
            )

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return images of shape (images, channels, height, width).

        Args:
            indices: Places of the images.
        """
        return self.images[torch.as_tensor(indices, dtype=torch.int64)]

    def select(self, classes: Sequence[int]) -> ImageSet:
        """Return the images of some classes, which get labels from 0 on in the given order.

        Args:
            classes: Labels of the classes.
        """
        new = torch.full((len(self.class_names),), -1, dtype=torch.int64)
        new[torch.as_tensor(classes, dtype=torch.int64)] = torch.arange(len(classes))
        kept = new[self.labels] >= 0
        names = tuple(self.class_names[label] for label in classes)
        return ImageSet(self.images[kept], new[self.labels[kept]], names)

    def __repr__(self) -> str:
        return f"ImageSet({len(self.images)} images of {len(self.class_names)} classes)"


@dataclass(frozen=True, eq=False)
class Domain:
    """A kind of images, cut into splits that share no class.

    Attributes:
        name: Name of the domain.
        train: Images to train on.
        valid: Images to choose settings with.
        test: Images to report results on.

    Raises:
        DataError: A split is empty, or two splits have a class in common.
    """

    name: str
    train: LabeledImages
    valid: LabeledImages
    test: LabeledImages

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            images: LabeledImages = getattr(self, split)
            if len(images.labels) == 0:
                raise DataError(
                    f"the split {split!r} of domain {self.name!r} is empty; it needs images of at "
                    "least one class."
                )
            for name in images.class_names:
                if name in seen:
                    raise DataError(
                        f"class {name!r} of domain {self.name!r} is in its splits {seen[name]!r} "
                        f"and {split!r}; the splits must not share a class."
                    )
                seen[name] = split

    def split(self, name: str) -> LabeledImages:
        """Return one split.

        Args:
            name: ``"train"``, ``"valid"`` or ``"test"``.

        Raises:
            UnknownNameError: There is no such split.
        """
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        images: LabeledImages = getattr(self, name)
        return images

    def __repr__(self) -> str:
        parts = (f"{split}={getattr(self, split)!r}" for split in SPLITS)
        return f"Domain({self.name!r}, {', '.join(parts)})"


Domains = Domain | Mapping[str, Domain] | Iterable[Domain]


def split_classes(names: Iterable[str]) -> dict[str, list[str]]:
    """Cut classes into splits by the place of their name in sorted order.

    Even places are for training, places 1, 5, 9 … for validation and 3, 7, 11 … for test, as in
    Tseng et al. (2020, arXiv:2001.08735). Names are sorted here, so that the order in which a file
    system lists folders has no say.

    Args:
        names: Names of the classes, in any order.

    Returns:
        Sorted names for each of the three splits.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for place, name in enumerate(sorted(names)):
        splits["train" if place % 2 == 0 else "valid" if place % 4 == 1 else "test"].append(name)
    return splits


def domain_of(name: str, images: ImageSet, group: Callable[[str], str] | None = None) -> Domain:
    """Cut labeled images into a domain by :func:`split_classes`.

    Args:
        name: Name of the domain.
        images: Images of all classes.
        group: Maps the name of a class to that of its group, all of which goes into one split;
            ``None`` takes each class for itself.

    Raises:
        DataError: There are fewer than four classes, or groups.
    """
    members: dict[str, list[int]] = {}
    for class_name, label in sorted(zip(images.class_names, itertools.count(), strict=False)):
        members.setdefault(class_name if group is None else group(class_name), []).append(label)
    parts = {
        split: images.select([label for one in names for label in members[one]])
        for split, names in split_classes(members).items()
    }
    return Domain(name, **parts)


def as_domains(domains: Domains) -> list[Domain]:
    """Return domains as a list, in the order of their names.

    Args:
        domains: Domains, alone, in a sequence or by name.

    Raises:
        ConfigurationError: One of them is no domain.
        DataError: There is no domain, or two have the same name.
    """
    if isinstance(domains, Domain):
        domains = [domains]
    given = list(domains.values()) if isinstance(domains, Mapping) else list(domains)
    for domain in given:
        if not isinstance(domain, Domain):
            raise ConfigurationError(
                f"{domain!r} is no Domain; get domains by name from default_domains or "
                "photo_domains."
            )
    if not given:
        raise DataError("no domain was given; at least one is needed.")
    given.sort(key=lambda domain: domain.name)
    names = [domain.name for domain in given]
    for first, second in itertools.pairwise(names):
        if first == second:
            raise DataError(f"two domains are called {first!r}; give each a name of its own.")
    return given


def check_names(names: Iterable[str]) -> list[str]:
    """Return names as a list.

    Args:
        names: Names of domains.

    Raises:
        ConfigurationError: It is one string, whose letters would be taken for names, or a name
            comes twice.
    """
    if isinstance(names, str):
        raise ConfigurationError(f"names is {names!r}; a list is needed: [{names!r}].")
    given = list(names)
    twice = [name for name in dict.fromkeys(given) if given.count(name) > 1]
    if twice:
        raise ConfigurationError(f"domains name {', '.join(map(repr, twice))} twice; name it once.")
    return given
