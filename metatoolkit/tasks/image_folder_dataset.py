"""A classification data set from a folder of images, in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import DataError
from metatoolkit.tasks.array_parts import channels_first, held_out_mask
from metatoolkit.tasks.classification import Classification, Split
from metatoolkit.tasks.image_files import class_images, read_image, subfolders

FOLDER = "folder:"


def load_folder(
    path: Path, size: tuple[int, int] | None, grayscale: bool, test_fraction: float
) -> Classification:
    """Load a folder with one folder of images per class, or with two such trees, train and test.

    Args:
        path: The folder.
        size: Height and width to resize to; ``None`` needs images of equal sizes.
        grayscale: Whether images become one channel rather than three.
        test_fraction: Fraction of each class that becomes the test part, where there is none.

    Raises:
        DataError: It is missing, a class is empty, an image cannot be read, or sizes differ.
    """
    if not path.is_dir():
        raise DataError(f"the image folder {path} does not exist; check the path.")
    folders = {folder.name: folder for folder in subfolders(path)}
    # A class may be called "train"; only a part has folders of its own.
    parts = {part for part in ("train", "test") if part in folders and subfolders(folders[part])}
    if len(parts) == 1:
        (part,) = parts
        raise DataError(
            f"{path} holds a tree of classes in {part!r}, but no other part; have both 'train' and "
            f"'test', or load {folders[part]} to have a test part split off."
        )
    if parts:
        class_names, train_files = _list_images(folders["train"])
        test_names, test_files = _list_images(folders["test"])
        unknown = sorted(set(test_names) - set(class_names))
        if unknown:
            raise DataError(
                f"{folders['test']} holds the class {unknown[0]!r}, which {folders['train']} "
                "lacks; both must name the same classes."
            )
        test_files = [(file, class_names.index(test_names[label])) for file, label in test_files]
        train, test = (_read(part, size, grayscale) for part in (train_files, test_files))
        shapes = train.images.shape[1:], test.images.shape[1:]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"the training images in {path} are {shapes[0][1]}×{shapes[0][2]}, the test images "
                f"{shapes[1][1]}×{shapes[1][2]}; pass image_size to resize them."
            )
    else:
        class_names, files = _list_images(path)
        both = _read(files, size, grayscale)
        mask = held_out_mask(both.labels, class_names, test_fraction)
        train = Split(both.images[~mask], both.labels[~mask])
        test = Split(both.images[mask], both.labels[mask])
    mean, std = _pixel_statistics(train.images)
    return Classification(
        name=f"{FOLDER}{path}",
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        class_names=tuple(class_names),
        mean=mean,
        std=std,
    )


def _list_images(path: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    folders = subfolders(path)
    if not folders:
        raise DataError(f"{path} holds no folder; one folder of images for each class is needed.")
    files = [(file, label) for label, folder in enumerate(folders) for file in class_images(folder)]
    return [folder.name for folder in folders], files


def _read(files: list[tuple[Path, int]], size: tuple[int, int] | None, grayscale: bool) -> Split:
    images: list[np.ndarray] = []
    for file, _ in files:
        pixels = read_image(file, size, grayscale)
        if images and pixels.shape != images[0].shape:
            raise DataError(
                f"{file} is {pixels.shape[0]}×{pixels.shape[1]}, but {files[0][0]} is "
                f"{images[0].shape[0]}×{images[0].shape[1]}; pass image_size to resize them."
            )
        images.append(pixels)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(channels_first(np.stack(images)), labels)


def _pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel of uint8 images, as pixels in [0, 1]."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        # A channel of one value has nothing to scale.
        stds.append(variance**0.5 if variance > 1e-12 else 1.0)
    return tuple(means), tuple(stds)
