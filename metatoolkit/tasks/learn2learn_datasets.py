"""The few-shot data sets that learn2learn offers, as domains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import DataError, MissingDependencyError, UnknownNameError
from metatoolkit.tasks.data_root import data_root
from metatoolkit.tasks.domains import Domain
from metatoolkit.tasks.image_files import eight_bits
from metatoolkit.tasks.learn2learn_import import import_learn2learn

_NAMES = (
    "CIFARFS",
    "CUBirds200",
    "DescribableTextures",
    "FC100",
    "FGVCAircraft",
    "FGVCFungi",
    "MiniImagenet",
    "Quickdraw",
    "TieredImagenet",
    "VGGFlower102",
)
_MODES = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class MapDataset:
    """Any map-style data set of images and labels, read whenever an image is asked for.

    Attributes:
        dataset: Yields (image, label); an image is Pillow's, an array of shape (height, width,
            channels) or a tensor of shape (channels, height, width), with values from 0 to 255.
        labels: Labels of shape (images,), int64, from 0 on.
        class_names: One name for each label.
    """

    dataset: Any
    labels: Tensor
    class_names: tuple[str, ...]

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        """Read images of shape (channels, height, width), uint8, each in its own size.

        Args:
            indices: Places of the images.

        Raises:
            DataError: An image cannot be read or has other values; the message names its place.
        """
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Tensor:
        try:
            image = self.dataset[index][0]
            if not isinstance(image, Tensor):
                pixels = np.array(eight_bits(image) if hasattr(image, "convert") else image)
                pixels = pixels[..., None] if pixels.ndim == 2 else pixels
                image = torch.from_numpy(pixels).permute(2, 0, 1)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"image {index} of {type(self.dataset).__name__} cannot be read ({error}); get the "
                "data again."
            ) from error
        if image.dtype == torch.uint8:
            return image
        low, high = (float(end) for end in image.aminmax()) if image.numel() else (0.0, 0.0)
        if image.dtype == torch.bool or (image.is_floating_point() and 0 < high <= 1):
            wrong = "values up to 1"
        elif not 0 <= low <= high <= 255:
            wrong = f"values from {low:g} to {high:g}"
        else:
            return image.round().to(torch.uint8) if image.is_floating_point() else image.byte()
        raise DataError(
            f"image {index} of {type(self.dataset).__name__} has {wrong}; accepted: 0 to 255. Take "
            "the transform that scales images out of the data set: tasks scale them."
        )

    def __repr__(self) -> str:
        return f"MapDataset({len(self.labels)} images of {len(self.class_names)} classes)"


def learn2learn_domain(
    name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False
) -> Domain:
    """Return a few-shot data set of learn2learn, with its own splits, as a domain.

    Args:
        name: Name of a class in ``learn2learn.vision.datasets``, for instance ``"MiniImagenet"``
            or ``"CIFARFS"``.
        root: Folder that learn2learn reads from; ``None`` takes the folder ``learn2learn`` in the
            folder that the environment variable ``METATOOLKIT_DATA`` names, else in the user's
            data directory.
        download: Whether learn2learn may download what is missing.

    Returns:
        The domain; its images may differ in size, so that episodes need a transform such as
        :class:`metatoolkit.tasks.PhotoTransform`.

    Raises:
        UnknownNameError: learn2learn has no such data set, or it has no splits by class.
        DataError: The data are missing or cannot be read.
        MissingDependencyError: learn2learn, or what it needs for this data set, is not installed.
    """
    if name not in _NAMES:
        raise UnknownNameError("data set of learn2learn", name, _NAMES)
    learn2learn = import_learn2learn(f"the data set {name!r}")
    folder = data_root() / "learn2learn" if root is None else data_root(root)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for split, mode in _MODES.items():
        try:
            source = getattr(learn2learn.vision.datasets, name)
            dataset = source(root=str(folder), mode=mode, download=download)
            members = learn2learn.data.MetaDataset(dataset).labels_to_indices
        except ImportError as error:
            raise MissingDependencyError(
                f"learn2learn's {name} needs a package that is not installed ({error})."
            ) from error
        except Exception as error:
            # Each of its data sets fails in a way of its own where data are missing.
            raise DataError(
                f"learn2learn cannot read {name} ({mode}) from {folder} "
                f"({type(error).__name__}: {error}); pass download=True, or put there what "
                f"learn2learn.vision.datasets.{name} downloads."
            ) from error
        labels = torch.empty(len(dataset), dtype=torch.int64)
        for label, given in enumerate(sorted(members)):
            labels[members[given]] = label
        # The same number is another class in another split.
        names = tuple(f"{mode} {given}" for given in sorted(members))
        parts[split] = MapDataset(dataset, labels, names)
    return Domain(name, **parts)
