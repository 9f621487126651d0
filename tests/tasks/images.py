"""Small image files and domains that tests of tasks share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metatoolkit.tasks import Domain, ImageSet


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 5)) -> None:
    """Write an image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def write_tree(root: Path, counts: dict[str, int]) -> None:
    """Write a folder for each class, with that many copies of one image."""
    root.mkdir(parents=True, exist_ok=True)
    write_image(root / ".seed.png", 7, (4, 4))
    content = (root / ".seed.png").read_bytes()
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:04}.png").write_bytes(content)


def numbered_domain(
    name: str, classes: int = 4, per_class: int = 6, offset: int = 0, channels: int = 1
) -> Domain:
    """Return a domain whose pixels tell domain, class and place.

    Pixel 0 is ``offset`` (a different one for each split), pixel 1 the label, pixel 2 the place.
    """

    def images(split: int) -> ImageSet:
        labels = torch.arange(classes).repeat_interleave(per_class)
        pixels = torch.zeros(len(labels), channels, 2, 2, dtype=torch.uint8)
        pixels[:, :, 0, 0] = offset + split
        pixels[:, :, 0, 1] = labels[:, None].to(torch.uint8)
        pixels[:, :, 1, 0] = torch.arange(len(labels))[:, None].to(torch.uint8)
        return ImageSet(pixels, labels, tuple(f"{split}.{label}" for label in range(classes)))

    return Domain(name, images(0), images(1), images(2))


def images_of(domain: Domain, split: str) -> ImageSet:
    images = domain.split(split)
    assert isinstance(images, ImageSet)
    return images
