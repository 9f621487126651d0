"""Classification data sets, held in memory as tensors."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    MissingDependencyError,
    ShapeError,
    UnknownNameError,
)
from metatoolkit.tasks.image_files import class_images, read_image, subfolders
from metatoolkit.tasks.image_transforms import ImageTransform
from metatoolkit.tasks.labels import check_labels

DATA_VARIABLE = "METATOOLKIT_DATA"
_FOLDER = "folder:"
_TEST_FRACTION = 0.2

_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
_MNIST_MEAN = (0.1307,)
_MNIST_STD = (0.3081,)
_TORCHVISION = ("cifar10", "cifar100", "mnist")


class Split(NamedTuple):
    """Images of shape (examples, channels, height, width) and their int64 labels (examples,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Classification:
    """A data set of images, in memory.

    Images are either floating point and normalized, or uint8 and normalized batch by batch, which
    takes a quarter of the memory: :meth:`transform` does what is needed in both cases.

    Attributes:
        name: Name of the data set.
        train_images: Images of shape (examples, channels, height, width), float32 or uint8.
        train_labels: Labels of shape (examples,), int64, from 0 on.
        test_images: Images like ``train_images``.
        test_labels: Labels like ``train_labels``.
        class_names: One name for each label.
        mean: Mean per channel of the pixels in [0, 1].
        std: Standard deviation per channel of the pixels in [0, 1].

    Raises:
        ShapeError: Images and labels do not fit together.
        LabelError: A label has no class.
        DataError: A type is not the one above, or a pixel is NaN or infinite.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            _check_images(f"{part}_images of {self.name}", images)
            check_labels(f"{part}_labels of {self.name}", labels, self.classes)
            if len(images) != len(labels):
                raise ShapeError(
                    f"{self.name} has {len(images)} {part}_images and {len(labels)} "
                    f"{part}_labels; one label for each image is needed."
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ShapeError(
                f"train_images of {self.name} have shape {tuple(self.train_images.shape[1:])}, "
                f"test_images {tuple(self.test_images.shape[1:])}; they must be equal."
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def train(self) -> Split:
        """Training images and labels."""
        return Split(self.train_images, self.train_labels)

    @property
    def test(self) -> Split:
        """Test images and labels."""
        return Split(self.test_images, self.test_labels)

    def transform(self, padding: int = 0, flip: bool = False) -> ImageTransform:
        """Return the transform that makes a batch of these images an input of a network.

        Args:
            padding: Pixels to reflect-pad before a random crop; 4 is usual for CIFAR.
            flip: Whether to mirror at random; not for digits.
        """
        return ImageTransform(self.mean, self.std, padding=padding, flip=flip)


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
    come from torchvision. ``"folder:<path>"`` is a folder with one folder of images per class, or
    with two such trees named ``train`` and ``test`` (others beside these are left alone). Where
    there is no test part, evenly spaced examples of each class, in file order, make it, so that the
    parts never depend on a seed.

    Args:
        name: ``"digits"``, ``"cifar10"``, ``"cifar100"``, ``"mnist"`` or ``"folder:<path>"``.
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
    """
    if not 0 < test_fraction < 1:
        raise ConfigurationError(f"test_fraction is {test_fraction}; it must be between 0 and 1.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ConfigurationError(f"image_size is {image_size}; sides from 1 pixel on are needed.")
    if name.startswith(_FOLDER):
        return _load_folder(Path(name[len(_FOLDER) :]).expanduser(), size, grayscale, test_fraction)
    if name == "digits":
        return _load_digits(test_fraction)
    if name in _TORCHVISION:
        return _load_torchvision(name, data_root(root), download)
    raise UnknownNameError("data set", name, ["digits", *_TORCHVISION, "folder:<path>"])


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder where data sets live.

    Args:
        root: Taken if given; else ``METATOOLKIT_DATA``, else a folder of the user's data
            directory.

    Raises:
        MissingDependencyError: Neither is set, and the user's data directory cannot be told.
    """
    given = root if root is not None else os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    try:
        import platformdirs
    except ImportError as error:
        raise MissingDependencyError(
            f"no folder for data sets is known: pass root, set {DATA_VARIABLE}, or pip install "
            "platformdirs."
        ) from error
    base = platformdirs.user_data_dir("metatoolkit", appauthor=False)
    return Path(base).absolute() / "datasets"


def _check_images(name: str, images: Tensor) -> None:
    if images.dim() != 4:
        raise ShapeError(
            f"{name} have shape {tuple(images.shape)}; (examples, channels, height, width) is "
            "needed."
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"{name} are {kind}; uint8 or a floating-point type is needed.")
    finite = images.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise DataError(f"{name} hold NaN or infinity, first in image {index}.")


def _load_digits(test_fraction: float) -> Classification:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the data set 'digits' needs scikit-learn: pip install scikit-learn."
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    test = _test_mask(labels, [str(digit) for digit in range(10)], test_fraction)
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


def _test_mask(labels: Tensor, class_names: list[str], fraction: float) -> Tensor:
    """Mark evenly spaced examples of each class, at least one and never all."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        count = len(members)
        if count < 2:
            raise DataError(
                f"class {name!r} has {count} image(s); at least 2 are needed to split off a test "
                "part."
            )
        held = min(max(round(count * fraction), 1), count - 1)
        place = torch.arange(count)
        mask[members] = (place + 1) * held // count > place * held // count
    return mask


def _load_torchvision(name: str, root: Path, download: bool) -> Classification:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"the data set {name!r} needs torchvision: pip install torchvision."
        ) from error
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
                parts.append(_open_torchvision(source, root, train, download))
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            raise DataError(
                f"{name} cannot be read from {root} or downloaded ({error!r}). Get {address}, "
                f"unpack it in that folder so that {folder} exists, or point "
                f"{DATA_VARIABLE} or root at a folder that holds it."
            ) from error
    pixels = [np.asarray(part.data) for part in parts]
    # MNIST's have no axis of channels.
    images = [_channels_first(p if p.ndim == 4 else p[..., None]) for p in pixels]
    labels = [torch.as_tensor(part.targets, dtype=torch.int64) for part in parts]
    return Classification(
        name=name,
        train_images=images[0],
        train_labels=labels[0],
        test_images=images[1],
        test_labels=labels[1],
        class_names=tuple(parts[0].classes),
        mean=_MNIST_MEAN if name == "mnist" else _CIFAR_MEAN,
        std=_MNIST_STD if name == "mnist" else _CIFAR_STD,
    )


def _open_torchvision(source: Any, root: Path, train: bool, download: bool) -> Any:
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


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _load_folder(
    path: Path, size: tuple[int, int] | None, grayscale: bool, test_fraction: float
) -> Classification:
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
        mask = _test_mask(both.labels, class_names, test_fraction)
        train = Split(both.images[~mask], both.labels[~mask])
        test = Split(both.images[mask], both.labels[mask])
    mean, std = _pixel_statistics(train.images)
    return Classification(
        name=f"{_FOLDER}{path}",
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
    return Split(_channels_first(np.stack(images)), labels)


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
