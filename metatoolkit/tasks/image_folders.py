"""Domains of image files: any tree of folders, and the five data sets of Tseng et al. (2020)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.tasks.data_root import DATA_VARIABLE, data_root
from metatoolkit.tasks.domains import SPLITS, Domain, check_names, split_classes
from metatoolkit.tasks.image_files import class_images, read_image, subfolders

# Classes of miniImageNet for validation and test, after Ravi and Larochelle (2017).
_MINI_VALID = (
    "n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 "
    "n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479"
).split()
_MINI_TEST = (
    "n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 "
    "n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 "
    "n04522168 n07613480"
).split()


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labeled images in files, read whenever they are asked for.

    Attributes:
        files: One file for each image.
        labels: Labels of shape (images,), int64, from 0 on.
        class_names: One name for each label.
        grayscale: Whether images have one channel rather than three.
        workers: Threads that read the images of an episode.
    """

    files: tuple[Path, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    grayscale: bool = False
    workers: int = min(8, os.cpu_count() or 1)

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        """Read images of shape (channels, height, width), uint8, each in its own size.

        Args:
            indices: Places of the images.

        Raises:
            DataError: A file cannot be read as an image; the message names it.
            MissingDependencyError: Pillow is not installed.
        """

        def read(index: int) -> Tensor:
            pixels = read_image(self.files[index], None, self.grayscale)
            return torch.from_numpy(pixels).permute(2, 0, 1)

        if self.workers < 2:
            return [read(index) for index in indices]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(read, indices))

    def __repr__(self) -> str:
        return f"ImageFiles({len(self.files)} images of {len(self.class_names)} classes)"


def image_folder_domain(
    name: str,
    path: str | os.PathLike[str],
    *,
    images_per_class: int | None = None,
    largest: int | None = None,
    grayscale: bool = False,
    split: Callable[[Iterable[str]], dict[str, list[str]]] | None = None,
) -> Domain:
    """Return the domain of a folder with one folder of images for each class.

    Where the folder holds folders named ``train``, ``valid`` (or ``val``) and ``test`` instead,
    each with folders of classes, these are the splits. Otherwise classes are split by name.

    Args:
        name: Name of the domain.
        path: The folder.
        images_per_class: Largest number of images of a class, the first by name; ``None`` takes
            all.
        largest: Number of classes to take, those with most images (of equals the first by name);
            ``None`` takes all.
        grayscale: Whether images become one channel rather than three.
        split: Maps class names to those of each split, whatever the folders are;
            ``None`` takes the splits above, or :func:`metatoolkit.tasks.split_classes`.

    Returns:
        The domain; its images are read when they are asked for.

    Raises:
        ConfigurationError: ``images_per_class`` or ``largest`` is less than 1.
        DataError: The folder is missing, holds no class, a class is empty, or a split would be.
    """
    for option, number in (("images_per_class", images_per_class), ("largest", largest)):
        if number is not None and number < 1:
            raise ConfigurationError(f"{option} is {number}; at least 1 is needed.")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"the image folder {root} does not exist; check the path.")
    trees = _split_trees(root)
    classes: dict[str, list[Path]] = {}
    splits: dict[str, list[str]] = {}
    for part, tree in ((None, root),) if trees is None else trees.items():
        folders = subfolders(tree)
        if not folders:
            raise DataError(
                f"the domain {name!r} is empty: {tree} holds no folder; one folder of images for "
                "each class is needed."
            )
        for folder in folders:
            if folder.name in classes:
                raise DataError(
                    f"class {folder.name!r} of domain {name!r} is in two of the splits of {root}; "
                    "the splits must not share a class."
                )
            classes[folder.name] = class_images(folder)
        if part is not None:
            splits[part] = [folder.name for folder in folders]
    if largest is not None:
        kept = sorted(classes, key=lambda class_name: (-len(classes[class_name]), class_name))
        classes = {class_name: classes[class_name] for class_name in kept[:largest]}
        splits = {part: [n for n in names if n in classes] for part, names in splits.items()}
    if split is not None:
        splits = split(classes)
    elif not splits:
        splits = split_classes(classes)
    parts = {}
    for part in SPLITS:
        files = [classes[class_name][:images_per_class] for class_name in splits[part]]
        parts[part] = ImageFiles(
            tuple(file for members in files for file in members),
            torch.tensor([label for label, members in enumerate(files) for _ in members]).long(),
            tuple(splits[part]),
            grayscale,
        )
    return Domain(name, **parts)


def _split_trees(root: Path) -> dict[str, Path] | None:
    """Return the folder of each split, if the folders of the root are splits and not classes."""
    trees = {
        split: folder
        for folder in subfolders(root)
        for split in SPLITS
        # A class may be called "train"; only a split has folders of its own.
        if folder.name in (split, split[:3]) and subfolders(folder)
    }
    if not trees:
        return None
    missing = [split for split in SPLITS if split not in trees]
    if missing:
        raise DataError(
            f"{root} holds a tree of classes in {next(iter(trees.values())).name!r}, but none in "
            f"{missing[0]!r}; have 'train', 'valid' and 'test', or point at a folder whose folders "
            "are classes."
        )
    return trees


@dataclass(frozen=True)
class _Source:
    folder: str
    counts: tuple[int, int, int]
    origin: str
    images_per_class: int | None = None
    largest: int | None = None
    split: Callable[[Iterable[str]], dict[str, list[str]]] | None = split_classes


def _split_mini_imagenet(names: Iterable[str]) -> dict[str, list[str]]:
    held = {"valid": set(_MINI_VALID), "test": set(_MINI_TEST)}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in sorted(names):
        splits[next((part for part in held if name in held[part]), "train")].append(name)
    return splits


_SOURCES = {
    "miniimagenet": _Source(
        "miniimagenet",
        (64, 16, 20),
        "ImageNet's training images (image-net.org) of the 100 classes that Ravi and Larochelle "
        "list (github.com/twitter-research/meta-learning-lstm, data/miniImagenet), in folders "
        "named by WordNet id, n01532829 and so on",
        split=_split_mini_imagenet,
    ),
    "cub": _Source(
        "cub",
        (100, 50, 50),
        "the folder images/ of CUB_200_2011.tgz (vision.caltech.edu/datasets/cub_200_2011)",
    ),
    "cars": _Source(
        "cars",
        (98, 49, 49),
        "the training images of Stanford Cars (cars_train.tgz and car_devkit.tgz, "
        "ai.stanford.edu/~jkrause/cars), sorted into folders named by class number, 001 to 196",
    ),
    "places": _Source(
        "places",
        (183, 91, 91),
        "the folder train/ of places365standard_easyformat.tar (places2.csail.mit.edu)",
        images_per_class=200,
    ),
    "plantae": _Source(
        "plantae",
        (100, 50, 50),
        "the folder Plantae/ of the training images of iNaturalist 2017 "
        "(github.com/visipedia/inat_comp)",
        images_per_class=600,
        largest=200,
    ),
}


def photo_domains(
    names: Iterable[str] | None = None, root: str | os.PathLike[str] | None = None
) -> dict[str, Domain]:
    """Return the domains of Tseng et al. (2020, arXiv:2001.08735) from folders of photographs.

    ``"miniimagenet"`` has 64, 16 and 20 classes for training, validation and test, ``"cub"`` 100,
    50 and 50, ``"cars"`` 98, 49 and 49, ``"places"`` 183, 91 and 91 of at most 200 images, and
    ``"plantae"`` 100, 50 and 50 of at most 600, the 200 classes with most images. The published
    code draws which 600 images, and cuts Plantae in an order that depends on the file system; here
    names decide.

    Each lies in a folder of its name, one folder of images for each class. Images are color and
    differ in size: pass :class:`metatoolkit.tasks.PhotoTransform` where episodes are made.

    Args:
        names: Names of domains; ``None`` takes all five.
        root: Folder that holds these folders; ``None`` takes the environment variable
            ``METATOOLKIT_DATA``, else the user's data directory.

    Returns:
        Domains by name.

    Raises:
        ConfigurationError: ``names`` is one string.
        UnknownNameError: There is no such domain.
        DataError: A folder is missing, has another number of classes, or a class is empty.
    """
    chosen = list(_SOURCES) if names is None else check_names(names)
    for name in chosen:
        if name not in _SOURCES:
            raise UnknownNameError("domain", name, _SOURCES)
    return {name: _photo_domain(name, data_root(root)) for name in chosen}


def _photo_domain(name: str, root: Path) -> Domain:
    source = _SOURCES[name]
    path = root / source.folder
    layout = (
        f"Put {source.origin}, into {path}, one folder of images for each class, or point "
        f"{DATA_VARIABLE} or root at a folder that holds {source.folder!r}."
    )
    if not path.is_dir():
        raise DataError(f"the data set {name!r} is not in {path}. {layout}")
    domain = image_folder_domain(
        name,
        path,
        images_per_class=source.images_per_class,
        largest=source.largest,
        split=source.split,
    )
    found = tuple(len(domain.split(split).class_names) for split in SPLITS)
    if found != source.counts:
        # Classes are split by their place among all, so that a missing one would shift others
        # from training to test.
        raise DataError(
            f"{path} gives {found[0]}, {found[1]} and {found[2]} classes for training, validation "
            f"and test; {name!r} has {source.counts[0]}, {source.counts[1]} and "
            f"{source.counts[2]}. {layout}"
        )
    return domain
