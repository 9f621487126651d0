from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    MissingDependencyError,
    ShapeError,
    UnknownNameError,
)
from metatoolkit.evaluation import few_shot_accuracy
from metatoolkit.tasks import (
    Domain,
    Episode,
    EpisodeBatches,
    ImageSet,
    default_domains,
    domain_of,
    split_classes,
)
from metatoolkit.tasks.domains import SPLITS
from metatoolkit.tasks.synthetic import drawn_images
from tests.tasks.images import images_of, numbered_domain

COMPUTED = ("digits", "glyphs", "letters", "textures", "photos")
SIZE = 16


def image_set(*names: str) -> ImageSet:
    labels = torch.arange(len(names)).repeat_interleave(2)
    return ImageSet(torch.zeros(len(labels), 1, 3, 3, dtype=torch.uint8), labels, names)


@pytest.fixture(scope="module")
def computed() -> dict[str, Domain]:
    return default_domains(COMPUTED, size=SIZE)


# Domains and their splits.


def test_classes_are_split_by_the_place_of_their_sorted_name() -> None:
    names = [f"{number:03}" for number in range(196)]
    splits = split_classes(reversed(names))
    assert splits["train"] == names[::2]
    assert splits["valid"] == names[1::4]
    assert splits["test"] == names[3::4]
    assert [len(splits[split]) for split in SPLITS] == [98, 49, 49]
    assert split_classes(["b", "a", "d", "c"]) == {
        "train": ["a", "c"],
        "valid": ["b"],
        "test": ["d"],
    }


def test_selected_classes_get_labels_in_the_given_order() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    whole = ImageSet(images, torch.tensor([0, 1, 2, 2, 1, 0]), ("a", "b", "c"))
    part = whole.select([2, 0])
    assert part.class_names == ("c", "a")
    assert part.images.flatten().tolist() == [0, 2, 3, 5]
    assert part.labels.tolist() == [1, 0, 0, 1]
    assert part.load([3, 0]).flatten().tolist() == [5, 0]


def test_a_domain_refuses_splits_that_are_empty_or_share_a_class() -> None:
    one, two = image_set("a", "b"), image_set("c")
    with pytest.raises(DataError, match=r"'c' of domain 'd' is in its splits 'valid' and 'test'"):
        Domain("d", one, two, two)
    empty = ImageSet(torch.zeros(0, 1, 3, 3), torch.zeros(0, dtype=torch.int64), ())
    with pytest.raises(DataError, match=r"split 'test' of domain 'd' is empty"):
        Domain("d", one, two, empty)
    with pytest.raises(DataError, match=r"split 'test' of domain 'few' is empty"):
        domain_of("few", image_set("a", "b", "c"))


def test_images_and_labels_must_fit_together() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"\(2, 3, 3\)"):
        ImageSet(torch.zeros(2, 3, 3), labels, ("a",))
    with pytest.raises(ShapeError, match="3 images and 2 labels"):
        ImageSet(torch.zeros(3, 1, 3, 3), labels, ("a",))
    with pytest.raises(LabelError, match="labels hold 1"):
        ImageSet(torch.zeros(2, 1, 3, 3), labels + 1, ("a",))


def test_an_unknown_split_is_named_and_a_domain_is_printed_in_one_line() -> None:
    domain = numbered_domain("d")
    with pytest.raises(UnknownNameError, match=r"'novel'.*Accepted: test, train, valid"):
        domain.split("novel")
    assert repr(domain).startswith("Domain('d', train=ImageSet(24 images of 4 classes), valid=")


# Domains that need no download.


def test_computed_domains_have_one_format_and_enough_classes(computed: dict[str, Domain]) -> None:
    assert tuple(computed) == COMPUTED
    for name, domain in computed.items():
        assert domain.name == name
        for split in SPLITS:
            images = images_of(domain, split)
            assert images.images.dtype == torch.uint8
            assert images.images.shape[1:] == (1, SIZE, SIZE)
            assert len(images.class_names) >= 6
            # 5 shots and 16 queries.
            assert images.labels.bincount().min() >= 21
            assert (images.images.float().flatten(1).std(1) > 1).all()


def test_no_image_is_in_two_splits_or_twice_in_one(computed: dict[str, Domain]) -> None:
    for domain in computed.values():
        every = [image.numpy().tobytes() for s in SPLITS for image in images_of(domain, s).images]
        assert len(set(every)) == len(every)


def test_a_digit_is_in_one_split_in_whatever_orientation(computed: dict[str, Domain]) -> None:
    digits = computed["digits"]
    kinds = [{name[0] for name in digits.split(split).class_names} for split in SPLITS]
    assert set.union(*kinds) == set("0123456789")
    assert sum(map(len, kinds)) == 10
    upright, turned = (images_of(digits, "train").select([label]).images for label in (1, 5))
    assert images_of(digits, "train").class_names[1] == "3 upright"
    assert images_of(digits, "train").class_names[5] == "3 turned"
    assert torch.equal(turned, upright.rot90(1, (2, 3)))


@pytest.mark.parametrize("draw", [drawn_images.glyphs, drawn_images.letters, drawn_images.textures])
def test_drawings_depend_on_their_seed_alone(draw: object) -> None:
    def images(seed: int) -> Tensor:
        assert callable(draw)
        return draw(size=10, per_class=2, seed=seed).images

    torch.manual_seed(1)
    np.random.seed(1)
    first = images(0)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, images(0))
    assert not torch.equal(first, images(1))
    assert images(0).shape[1:] == (1, 10, 10)


def test_a_pen_of_known_width_inks_a_known_area() -> None:
    curve = torch.stack((torch.linspace(-0.5, 0.5, 8), torch.zeros(8)), dim=1)[None, None]
    present = torch.ones(1, 1, dtype=torch.bool)
    image = drawn_images._render(curve, present, torch.tensor([0.1]), 200)
    # A rectangle of 1 by 0.2 and a disk of radius 0.1, of a square of side 2.
    area = (0.2 + torch.pi * 0.01) / 4
    assert float(image.double().mean() / 255) == pytest.approx(area, rel=2e-3)
    assert int(image[0, 0, 100, 100]) == 255
    assert int(image[0, 0, 85, 100]) == 0
    absent = drawn_images._render(curve, ~present, torch.tensor([0.1]), 20)
    assert int(absent.max()) == 0


def test_gratings_have_the_wavelength_and_orientation_of_their_class() -> None:
    textures = drawn_images.textures(size=32, classes=30, per_class=8)
    spectrum = torch.fft.fft2(textures.images[:, 0].double() - 128).abs()
    spectrum[:, 0, 0] = 0
    peaks = spectrum.flatten(1).argmax(1)
    places = torch.fft.fftfreq(32) * 32
    frequency = torch.stack((places[peaks // 32], places[peaks % 32]), dim=1)
    # A direction and its opposite are one orientation.
    angle = 2 * torch.atan2(frequency[:, 0], frequency[:, 1])
    radius = frequency.norm(dim=1)
    for label in range(0, 30, 3):
        chosen = textures.labels == label
        agreement = torch.polar(torch.ones(8), angle[chosen]).mean().abs()
        assert textures.class_names[label].endswith("grating")
        assert agreement > 0.8
        assert radius[chosen].std() < 0.25 * radius[chosen].mean()
    assert radius.max() > 2 * radius.min()


def statistics(images: Tensor) -> Tensor:
    """Return six numbers for each image: brightness, contrast, edges, black and white."""
    pixels = images.float() / 255
    columns = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3))
    rows = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean((1, 2, 3))
    level, spread = pixels.mean((1, 2, 3)), pixels.std((1, 2, 3))
    black, white = ((pixels < 0.05).float(), (pixels > 0.95).float())
    return torch.stack(
        (level, spread, columns, rows, black.mean((1, 2, 3)), white.mean((1, 2, 3))), 1
    )


def test_simple_statistics_of_an_image_tell_its_domain(computed: dict[str, Domain]) -> None:
    train = [statistics(images_of(domain, "train").images) for domain in computed.values()]
    together = torch.cat(train)
    mean, std = together.mean(0), together.std(0)
    centroids = torch.stack([((part - mean) / std).mean(0) for part in train])
    hits = []
    for number, domain in enumerate(computed.values()):
        # Classes that the centroids have not seen.
        values = (statistics(images_of(domain, "test").images) - mean) / std
        hits.append(float((torch.cdist(values, centroids).argmin(1) == number).double().mean()))
    assert sum(hits) / len(hits) > 0.75
    assert min(hits) > 0.5


def test_features_of_one_domain_serve_another_less(computed: dict[str, Domain]) -> None:
    def whitening(images: ImageSet) -> Tensor:
        """Return the map that makes deviations from class means white, as in discriminants."""
        pixels = (images.images.double() / 255).flatten(1)
        classes = range(len(images.class_names))
        means = torch.stack([pixels[images.labels == label].mean(0) for label in classes])
        deviations = pixels - means[images.labels]
        scatter = deviations.mT @ deviations / len(pixels)
        scatter += 0.1 * scatter.diagonal().mean() * torch.eye(len(scatter))
        return torch.linalg.inv(torch.linalg.cholesky(scatter)).mT.float()

    def accuracy(source: str) -> float:
        features = whitening(images_of(computed[source], "train"))

        def score(episode: Episode) -> Tensor:
            support, query = (
                normalize(part.flatten(-3) @ features, dim=-1)
                for part in (episode.support, episode.query)
            )
            return query.flatten(0, 1) @ support.mean(1).mT

        episodes = EpisodeBatches(computed["letters"], "test", 5, 5, 10, seed=1)
        return few_shot_accuracy(score, episodes, 100, progress=False).mean

    own = accuracy("letters")
    others = {source: accuracy(source) for source in COMPUTED if source != "letters"}
    assert own > 0.6
    assert all(own > other + 0.05 for other in others.values()), (own, others)


def test_names_of_domains_and_sizes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match=r"domain 'digit'.*Did you mean 'digits'"):
        default_domains(["digit"])
    for size in (7, True, 12.0):
        with pytest.raises(ConfigurationError, match=f"size is {size!r}"):
            default_domains(["digits"], size=size)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="names is 'digits'"):
        default_domains("digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"needs sklearn.*metatoolkit\[vision\]"):
        default_domains(["digits"], size=9)
