"""Omniglot: handwritten characters of many alphabets, read from the published archives."""

from __future__ import annotations

import functools
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError, optional_import
from metatoolkit.tasks.data_root import DATA_VARIABLE, data_root
from metatoolkit.tasks.domains import Domain, ImageSet, domain_of


def omniglot_domain(
    alphabet: str | None = None,
    size: int = 28,
    root: str | os.PathLike[str] | None = None,
    *,
    whole_alphabets: bool = False,
) -> Domain:
    """Return Omniglot (Lake et al. 2015, Science 350) as a domain of white strokes on black.

    Images come from the archives ``images_*.zip`` in the folder ``omniglot``, read as they are; a
    character that two archives hold counts once.

    Args:
        alphabet: Name of one alphabet, for instance ``"Korean"``; ``None`` takes all.
        size: Side of an image in pixels.
        root: Folder that holds ``omniglot``; ``None`` takes the environment variable
            ``METATOOLKIT_DATA``, else the user's data directory.
        whole_alphabets: Whether the splits share no alphabet, rather than no character alone;
            without ``alphabet``.

    Returns:
        The domain, called ``"omniglot"``, ``"omniglot:<alphabet>"`` or ``"omniglot_alphabets"``; a
        class is a character.

    Raises:
        DataError: The archives are missing, or hold no image, or one cannot be read.
        UnknownNameError: There is no such alphabet.
        ConfigurationError: One alphabet is to be split into whole ones.
        MissingDependencyError: Pillow is not installed.
    """
    archives = omniglot_archives(root)
    if not archives:
        folder = data_root(root) / "omniglot"
        raise DataError(
            f"Omniglot is not in {folder}. Put images_background_small1.zip or other archives of "
            f"images from github.com/brendenlake/omniglot, folder python/, there as they are, or "
            f"point {DATA_VARIABLE} or root at a folder that holds 'omniglot'."
        )
    images = _read_archives(tuple(archives), size)
    if whole_alphabets:
        if alphabet is not None:
            raise ConfigurationError(
                f"whole_alphabets=True needs several alphabets, but alphabet is {alphabet!r}; "
                "leave one of them out."
            )
        return domain_of("omniglot_alphabets", images, lambda name: name.partition("/")[0])
    if alphabet is None:
        return domain_of("omniglot", images)
    alphabets = [name.partition("/")[0] for name in images.class_names]
    if alphabet not in alphabets:
        raise UnknownNameError("alphabet", alphabet, set(alphabets))
    chosen = [label for label, name in enumerate(alphabets) if name == alphabet]
    return domain_of(f"omniglot:{alphabet}", images.select(chosen))


def omniglot_archives(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the archives of images that are there, sorted.

    Args:
        root: As in :func:`omniglot_domain`.
    """
    return sorted((data_root(root) / "omniglot").glob("images_*.zip"))


@functools.lru_cache(maxsize=4)
def _read_archives(archives: tuple[Path, ...], size: int) -> ImageSet:
    with optional_import("Omniglot"):
        from PIL import Image
    drawings: dict[str, dict[str, np.ndarray]] = {}
    for archive, entry, content in _entries(archives):
        path = PurePosixPath(entry)
        members = drawings.setdefault("/".join(path.parts[-3:-1]), {})
        if path.name in members:
            continue
        try:
            with Image.open(io.BytesIO(content)) as opened:
                image = opened.convert("L").resize((size, size), Image.Resampling.BOX)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{entry} in {archive} cannot be read as an image ({error}); get the archive again."
            ) from error
        # Published drawings are black on white.
        members[path.name] = 255 - np.asarray(image, dtype=np.uint8)
    if not drawings:
        raise DataError(
            f"{', '.join(map(str, archives))}: no image named alphabet/character/file.png; get the "
            "archives again."
        )
    names = tuple(sorted(drawings))
    pixels = [drawings[name][file] for name in names for file in sorted(drawings[name])]
    labels = [label for label, name in enumerate(names) for _ in drawings[name]]
    return ImageSet(torch.from_numpy(np.stack(pixels)).unsqueeze(1), torch.tensor(labels), names)


def _entries(archives: tuple[Path, ...]) -> Iterator[tuple[Path, str, bytes]]:
    for archive in archives:
        try:
            with zipfile.ZipFile(archive) as opened:
                for entry in sorted(opened.namelist()):
                    parts = PurePosixPath(entry).parts
                    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
                    if entry.lower().endswith(".png") and len(parts) >= 3 and not hidden:
                        yield archive, entry, opened.read(entry)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{archive} cannot be read ({error}); get it again.") from error
