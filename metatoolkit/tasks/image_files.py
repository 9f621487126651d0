"""Image files in folders: how they are found and read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metatoolkit.errors import DataError, optional_import

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


def subfolders(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; hidden ones are left out.

    Args:
        path: A folder.
    """
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def class_images(folder: Path) -> list[Path]:
    """Return the images in a folder and in those below it, sorted.

    Args:
        folder: Folder of one class.

    Raises:
        DataError: There is none.
    """
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file() and file.name[0] != "."
    )
    if not found:
        raise DataError(
            f"class {folder.name!r} is empty: {folder} holds no image "
            f"({', '.join(sorted(SUFFIXES))})."
        )
    return found


def read_image(file: Path, size: tuple[int, int] | None, grayscale: bool) -> np.ndarray:
    """Read one image, turned as its EXIF orientation says.

    Args:
        file: The image.
        size: Height and width to resize to; ``None`` keeps those of the file.
        grayscale: Whether to return one channel rather than three.

    Returns:
        uint8 pixels of shape (height, width, channels).

    Raises:
        DataError: The file cannot be read as an image.
        MissingDependencyError: Pillow is not installed.
    """
    with optional_import("a folder of images"):
        from PIL import Image, ImageOps
    with _image_errors(file), Image.open(file) as opened:
        image = eight_bits(ImageOps.exif_transpose(opened), grayscale)
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8)
    return pixels[:, :, None] if grayscale else pixels


def eight_bits(image: Image.Image, grayscale: bool | None = None) -> Image.Image:
    """Return an image of one or three channels, whose values are its brightness from 0 to 255.

    Args:
        image: Image of any mode, such as one with a palette.
        grayscale: Whether it shall have one channel; ``None`` for one where it has no colors.
    """
    if image.mode.startswith("I"):
        from PIL import Image

        # Pillow's own conversion would clip 16 bits at 255.
        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8))
    if grayscale is None:
        grayscale = image.mode in ("1", "L", "LA", "F")
    return image.convert("L" if grayscale else "RGB")


@contextlib.contextmanager
def _image_errors(file: Path) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} cannot be read as an image ({error}); repair it or remove it."
        ) from error
