"""CIFAR and MNIST, through torchvision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metatoolkit.errors import DataError, optional_import
from metatoolkit.tasks.array_parts import channels_first
from metatoolkit.tasks.classification import Classification
from metatoolkit.tasks.data_root import DATA_VARIABLE

TORCHVISION = ("cifar10", "cifar100", "mnist")

_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
MNIST_MEAN = (0.1307,)
MNIST_STD = (0.3081,)


def load_torchvision(name: str, root: Path, download: bool = True) -> Classification:
    """Load CIFAR or MNIST.

    Args:
        name: One of :data:`TORCHVISION`.
        root: Folder of the files.
        download: Whether to download them where they are missing.

    Raises:
        DataError: They are missing, cannot be downloaded or cannot be read.
        MissingDependencyError: torchvision is not installed.
    """
    with optional_import(f"the data set {name!r}"):
        from torchvision import datasets
    sources = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
    }
    source = sources[name]
    # What must be downloaded, and the folder that torchvision looks for it in.
    if name == "mnist":
        address = ", ".join(source.mirrors[0] + file for file, _ in source.resources)
        folder = root / source.__name__ / "raw"
    else:
        address, folder = source.url, root / source.base_folder
    parts = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # The published files name a type as numpy 1 wrote it.
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                parts.append(_open(source, root, train, download))
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            raise DataError(
                f"{name} cannot be read from {root} or downloaded ({error!r}). Get {address}, "
                f"unpack it in that folder so that {folder} exists, or point "
                f"{DATA_VARIABLE} or root at a folder that holds it."
            ) from error
    pixels = [np.asarray(part.data) for part in parts]
    # MNIST's have no axis of channels.
    images = [channels_first(p if p.ndim == 4 else p[..., None]) for p in pixels]
    labels = [torch.as_tensor(part.targets, dtype=torch.int64) for part in parts]
    return Classification(
        name=name,
        train_images=images[0],
        train_labels=labels[0],
        test_images=images[1],
        test_labels=labels[1],
        class_names=tuple(parts[0].classes),
        mean=MNIST_MEAN if name == "mnist" else _CIFAR_MEAN,
        std=MNIST_STD if name == "mnist" else _CIFAR_STD,
    )


def _open(source: Any, root: Path, train: bool, download: bool) -> Any:
    try:
        return source(root=str(root), train=train, download=False)
    except RuntimeError:
        if not download:
            raise
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    # Two runs that start together would write the same archive.
    with FileLock(root / f".{source.__name__}.lock"):
        return source(root=str(root), train=train, download=True)
