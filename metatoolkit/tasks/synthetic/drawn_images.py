"""Labeled images that are computed: glyphs, printed letters and textures.

Each function returns white on black, uint8 of shape (images, 1, size, size), and draws from its
seed alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import optional_import
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.domains import ImageSet

# Pixels that are rendered at once: few enough for a processor's cache.
_CHUNK = 50_000
_CURVE_POINTS = 8
# Letters that every DejaVu face has, and that no other domain shares.
_LETTERS = (
    "".join(map(chr, range(0x10D0, 0x10F1)))
    + "".join(map(chr, range(0x0531, 0x0557)))
    + "БГДЖЗИЛПФЦЧШЪЭЮЯ"
)


def glyphs(size: int = 28, classes: int = 80, per_class: int = 30, seed: int = 0) -> ImageSet:
    """Draw invented characters, each of two to four curved strokes.

    A class is a set of quadratic Bézier curves. A drawing moves their control points a little,
    turns, shears, scales and shifts the whole, and has a pen width of its own.

    Args:
        size: Side of an image in pixels.
        classes: Number of characters.
        per_class: Drawings of each.
        seed: Seed of characters and drawings.

    Returns:
        The drawings.
    """
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.DRAWN_IMAGES))
    count = classes * per_class
    strokes = 4
    points = torch.rand(classes, strokes, 3, 2, generator=generator) * 1.6 - 0.8
    # A stroke begins where the one before it ended with probability one half.
    joined = torch.rand(classes, strokes, generator=generator) < 0.5
    for stroke in range(1, strokes):
        before = points[:, stroke - 1, 2]
        points[:, stroke, 0] = torch.where(joined[:, stroke, None], before, points[:, stroke, 0])
    present = torch.arange(strokes) < torch.randint(2, 5, (classes, 1), generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    jitter = torch.randn(count, strokes, 3, 2, generator=generator) * 0.06
    control = (points[labels] + jitter) @ _affine(count, generator).mT[:, None]
    control = control + (torch.rand(count, 1, 1, 2, generator=generator) - 0.5) * 0.25
    t = torch.linspace(0, 1, _CURVE_POINTS)[:, None]
    basis = torch.cat(((1 - t) ** 2, 2 * t * (1 - t), t**2), dim=1)
    curves = torch.einsum("tp,nspx->nstx", basis, control)
    width = 0.05 + 0.07 * torch.rand(count, generator=generator)
    parts = [
        _render(curves[part], present[labels[part]], width[part], size)
        for part in torch.arange(count).split(max(1, _CHUNK // size**2))
    ]
    names = tuple(f"glyph {number:03}" for number in range(classes))
    return ImageSet(torch.cat(parts), labels, names)


def _affine(count: int, generator: torch.Generator) -> Tensor:
    """Return random turns, shears and scales of shape (count, 2, 2)."""
    turn, shear, wide, high = torch.randn(4, count, generator=generator)
    turn, shear = turn * math.radians(8), shear * 0.1
    wide, high = 0.95 * (0.1 * wide).exp(), 0.95 * (0.1 * high).exp()
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack((cos, -sin, sin, cos), dim=-1).view(-1, 2, 2)
    zero = torch.zeros_like(wide)
    stretch = torch.stack((wide, shear, zero, high), dim=-1).view(-1, 2, 2)
    return rotation @ stretch


def _render(curves: Tensor, present: Tensor, width: Tensor, size: int) -> Tensor:
    """Ink every pixel nearer to a curve than half the pen's width, with a soft edge.

    Args:
        curves: Points of shape (images, strokes, points, 2) in [-1, 1].
        present: Which strokes are drawn, of shape (images, strokes).
        width: Half widths of shape (images,).
        size: Side of an image in pixels.
    """
    start, end = curves[:, :, :-1], curves[:, :, 1:]
    drawn = present[:, :, None].expand(start.shape[:3]).flatten(1)
    start, along = start.flatten(1, 2), (end - start).flatten(1, 2)
    side = (torch.arange(size) + 0.5) / size * 2 - 1
    # Of shape (images, pixels, segments): plain products are much faster than sums over a last
    # dimension of two.
    x = side.repeat(size)[None, :, None] - start[:, None, :, 0]
    y = side.repeat_interleave(size)[None, :, None] - start[:, None, :, 1]
    dx, dy = along[:, None, :, 0], along[:, None, :, 1]
    share = ((x * dx + y * dy) / (dx * dx + dy * dy).clamp_min(1e-9)).clamp_(0, 1)
    distance = ((x - share * dx).square_() + (y - share * dy).square_()).sqrt_()
    distance = distance.masked_fill(~drawn[:, None], torch.inf).amin(-1)
    ink = ((width[:, None] - distance) * size / 2 + 0.5).clamp(0, 1)
    return (ink * 255).round().to(torch.uint8).view(-1, 1, size, size)


def letters(size: int = 28, per_class: int = 40, seed: int = 0) -> ImageSet:
    """Print Georgian, Armenian and Cyrillic letters in the twelve DejaVu faces of Matplotlib.

    A class is a letter; an image has a face (sans, serif, monospaced; bold, oblique), a size, a
    turn and a place of its own.

    Args:
        size: Side of an image in pixels.
        per_class: Images of each letter.
        seed: Seed of the choices.

    Returns:
        The images.

    Raises:
        MissingDependencyError: Matplotlib, whose fonts are taken, or Pillow is not installed.
    """
    with optional_import("the domain 'letters'"):
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(p for p in folder.glob("DejaVuS*.ttf") if "Display" not in p.name)
    rng = np.random.default_rng(fold_in(seed, Stream.DRAWN_IMAGES))
    # Drawn at twice the size and averaged down, so that edges are smooth after turning.
    canvas = 2 * size
    heights = [round(canvas * share) for share in (0.55, 0.65, 0.75)]
    fonts = [[ImageFont.truetype(str(face), height) for height in heights] for face in faces]
    images = []
    for letter in _LETTERS:
        for _ in range(per_class):
            font = fonts[rng.integers(len(faces))][rng.integers(len(heights))]
            image = Image.new("L", (canvas, canvas))
            left, top, right, bottom = font.getbbox(letter)
            shift = rng.uniform(-0.06, 0.06, 2) * canvas
            place = (
                (canvas - left - right) / 2 + shift[0],
                (canvas - top - bottom) / 2 + shift[1],
            )
            ImageDraw.Draw(image).text(place, letter, fill=255, font=font)
            image = image.rotate(rng.normal(0, 8), Image.Resampling.BILINEAR)
            images.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
    labels = torch.arange(len(_LETTERS)).repeat_interleave(per_class)
    stacked = torch.from_numpy(np.stack(images)).unsqueeze(1)
    return ImageSet(stacked, labels, tuple(f"U+{ord(letter):04X}" for letter in _LETTERS))


def textures(size: int = 28, classes: int = 80, per_class: int = 40, seed: int = 0) -> ImageSet:
    """Compute textures: gratings, checkerboards and band-passed noise.

    A class has a kind, a wavelength, an orientation and a sharpness; an image has a phase, a
    contrast, a brightness and noise of its own, and deviates a little in the rest.

    Args:
        size: Side of an image in pixels.
        classes: Number of textures.
        per_class: Images of each.
        seed: Seed of textures and images.

    Returns:
        The images.
    """
    generator = torch.Generator().manual_seed(fold_in(seed, Stream.DRAWN_IMAGES))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    labels = torch.arange(classes).repeat_interleave(per_class)
    count = len(labels)
    kind = labels % 3
    cycles = uniform(classes, low=math.log(2), high=math.log(8)).exp()[labels]
    angle = uniform(classes, high=math.pi)[labels]
    sharpness = uniform(classes, low=0.5, high=6)[labels]
    spread = uniform(classes, low=0.1, high=1.2)[labels]
    cycles = cycles * (0.06 * torch.randn(count, generator=generator)).exp()
    angle = angle + math.radians(5) * torch.randn(count, generator=generator)

    side = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(side, side, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    frequency = 2 * math.pi * cycles[:, None, None]
    phases = uniform(2, count, 1, 1, high=2 * math.pi)
    along = (frequency * (cos * x + sin * y) + phases[0]).sin()
    across = (frequency * (cos * y - sin * x) + phases[1]).sin()
    sharp = sharpness[:, None, None]
    grating = torch.tanh(sharp * along) / torch.tanh(sharp)
    checks = torch.tanh(sharp * along * across) / torch.tanh(sharp)

    # Noise whose spectrum is a Gaussian bump at the class's wavelength and orientation.
    fy, fx = torch.meshgrid(
        torch.fft.fftfreq(size) * size, torch.fft.rfftfreq(size) * size, indexing="ij"
    )
    radius = (fx**2 + fy**2).sqrt()
    around = torch.atan2(fy, fx) - angle[:, None, None]
    # Opposite directions are one orientation.
    around = torch.atan2((2 * around).sin(), (2 * around).cos()) / 2
    band = torch.exp(
        -(((radius.clamp_min(0.5) / cycles[:, None, None]).log() / 0.25) ** 2) / 2
        - (around / spread[:, None, None]) ** 2 / 2
    )
    white = torch.fft.rfft2(torch.randn(count, size, size, generator=generator))
    noise = torch.fft.irfft2(white * band, s=(size, size))
    noise = (noise / noise.std(dim=(1, 2), keepdim=True).clamp_min(1e-6) / 2).clamp(-1, 1)

    pattern = torch.stack((grating, checks, noise))[kind, torch.arange(count)]
    contrast, brightness = (
        uniform(count, 1, 1, low=0.25, high=0.5),
        uniform(count, 1, 1, low=-0.12, high=0.12),
    )
    pixels = 0.5 + brightness + contrast * pattern
    pixels = pixels + 0.03 * torch.randn(count, size, size, generator=generator)
    images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).unsqueeze(1)
    kinds = ("grating", "checkerboard", "noise")
    names = tuple(f"texture {number:03} {kinds[number % 3]}" for number in range(classes))
    return ImageSet(images, labels, names)
