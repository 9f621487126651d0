"""Small domains that need no download, and how to get any of them by name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.tasks.domains import Domain, ImageSet, check_names, domain_of
from metatoolkit.tasks.omniglot import omniglot_archives, omniglot_domain
from metatoolkit.tasks.synthetic import drawn_images

# Digits of one split are no digits of another, in whatever orientation.
_DIGITS = {"train": (0, 3, 6, 9), "valid": (1, 4, 7), "test": (2, 5, 8)}


def default_domains(
    names: Iterable[str] | None = None,
    size: int = 28,
    root: str | os.PathLike[str] | None = None,
) -> dict[str, Domain]:
    """Return domains of small gray images, uint8 of shape (1, size, size).

    ``"digits"`` are scikit-learn's handwritten digits, ``"omniglot"`` drawn characters of many
    alphabets, ``"omniglot_alphabets"`` the same with splits that share no alphabet,
    ``"omniglot:<alphabet>"`` those of one, ``"glyphs"`` invented characters of curved strokes,
    ``"letters"`` Georgian, Armenian and Cyrillic print, ``"textures"`` gratings, checkerboards and
    noise, ``"photos"`` parts of two photographs that scikit-learn carries.

    Args:
        names: Names of domains; ``None`` takes digits, letters, textures, photos, and Omniglot
            where it is at hand, else glyphs.
        size: Side of an image in pixels.
        root: Folder of data sets; ``None`` takes the environment variable ``METATOOLKIT_DATA``,
            else the user's data directory.

    Returns:
        Domains by name. They are computed once per process and size.

    Raises:
        ConfigurationError: ``size`` is less than 8, or ``names`` is one string.
        UnknownNameError: There is no such domain, or Omniglot has no such alphabet.
        DataError: Omniglot is asked for and missing or damaged.
        MissingDependencyError: A package that a domain needs is not installed.

    Example:
        >>> domains = default_domains(["digits", "textures"], size=16)
        >>> domains["digits"].split("test").class_names[:3]
        ('2 upright', '5 upright', '8 upright')
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise ConfigurationError(f"size is {size!r}; an integer from 8 on is needed.")
    if names is None:
        drawn = "omniglot" if omniglot_archives(root) else "glyphs"
        names = ("digits", drawn, "letters", "textures", "photos")
    domains = {}
    for name in check_names(names):
        if name in _DOMAINS:
            domains[name] = _DOMAINS[name](size)
        elif name in ("omniglot", "omniglot_alphabets"):
            whole = name == "omniglot_alphabets"
            domains[name] = omniglot_domain(None, size, root, whole_alphabets=whole)
        elif name.startswith("omniglot:"):
            domains[name] = omniglot_domain(name.partition(":")[2], size, root)
        else:
            known = (*_DOMAINS, "omniglot", "omniglot_alphabets", "omniglot:<alphabet>")
            raise UnknownNameError("domain", name, known)
    return domains


@functools.cache
def _digits(size: int) -> Domain:
    with optional_import("the domain 'digits'"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    pixels = interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    both = ImageSet(
        torch.cat((images, images.rot90(1, (2, 3)))),
        torch.cat((labels, labels + 10)),
        tuple(f"{digit} {way}" for way in ("upright", "turned") for digit in range(10)),
    )
    parts = {
        split: both.select([*digits, *(digit + 10 for digit in digits)])
        for split, digits in _DIGITS.items()
    }
    return Domain("digits", **parts)


@functools.cache
def _glyphs(size: int) -> Domain:
    return domain_of("glyphs", drawn_images.glyphs(size))


@functools.cache
def _letters(size: int) -> Domain:
    return domain_of("letters", drawn_images.letters(size))


@functools.cache
def _textures(size: int) -> Domain:
    return domain_of("textures", drawn_images.textures(size))


@functools.cache
def _photos(size: int) -> Domain:
    """Cut two photographs into cells: a class is a cell, an image a part of it."""
    with optional_import("the domain 'photos'"):
        from sklearn.datasets import load_sample_images
    rows, columns, per_class = 7, 10, 40
    rng = np.random.default_rng(0)
    images, names = [], []
    for number, photo in enumerate(load_sample_images().images):
        gray = torch.from_numpy(photo.mean(axis=2)).to(torch.float32)
        high, wide = gray.shape[0] // rows, gray.shape[1] // columns
        for row in range(rows):
            for column in range(columns):
                cell = gray[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                # A part of plain sky looks like any other.
                if _least_contrast(cell) < 10:
                    continue
                names.append(f"photo {number} row {row} column {column}")
                images.append(_crops(cell, size, per_class, rng))
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    return domain_of("photos", ImageSet(torch.cat(images), labels, tuple(names)))


def _least_contrast(cell: Tensor) -> float:
    """Return the smallest deviation of pixels in the corners of a cell."""
    high, wide = (int(0.6 * length) for length in cell.shape)
    corners = (cell[:high, :wide], cell[:high, -wide:], cell[-high:, :wide], cell[-high:, -wide:])
    return min(float(corner.std()) for corner in corners)


def _crops(cell: Tensor, size: int, count: int, rng: np.random.Generator) -> Tensor:
    crops = []
    for _ in range(count):
        side = int(min(cell.shape) * rng.uniform(0.6, 0.9))
        top, left = (rng.integers(length - side + 1) for length in cell.shape)
        crop = cell[None, None, top : top + side, left : left + side]
        crop = interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        crop = (crop - crop.mean()) * rng.uniform(0.7, 1.3) + crop.mean() + rng.uniform(-25, 25)
        crops.append(crop.clamp(0, 255).round().to(torch.uint8))
    return torch.cat(crops)


_DOMAINS: dict[str, Callable[[int], Domain]] = {
    "digits": _digits,
    "glyphs": _glyphs,
    "letters": _letters,
    "textures": _textures,
    "photos": _photos,
}
