from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnknownNameError
from metatoolkit.tasks import (
    ImageFiles,
    PhotoTransform,
    image_folder_domain,
    photo_domains,
    split_classes,
)
from metatoolkit.tasks.domains import SPLITS
from metatoolkit.tasks.image_folders import _MINI_TEST, _MINI_VALID
from tests.tasks.images import write_tree


def counts_of(domain: object) -> list[int]:
    return [len(getattr(domain, split).class_names) for split in SPLITS]


# Any tree of folders.


def test_a_tree_is_split_by_sorted_class_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["fox", "ant", "Bee", "cat", "dog", "elk", "gnu", "hen"]
    write_tree(tmp_path, dict.fromkeys(names, 2))
    first = image_folder_domain("tree", tmp_path)
    assert first.train.class_names == ("Bee", "cat", "elk", "gnu")
    assert first.valid.class_names == ("ant", "fox")
    assert first.test.class_names == ("dog", "hen")
    # The order in which a file system lists folders has no say.
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(sorted(listing(path))))
    second = image_folder_domain("tree", tmp_path)
    for split in SPLITS:
        one, two = first.split(split), second.split(split)
        assert isinstance(one, ImageFiles)
        assert isinstance(two, ImageFiles)
        assert one.class_names == two.class_names
        assert one.files == two.files
        assert torch.equal(one.labels, two.labels)
        for file, label in zip(one.files, one.labels.tolist(), strict=True):
            assert file.parent.name == one.class_names[label]


def test_images_are_read_in_color_or_gray_and_in_their_own_size(tmp_path: Path) -> None:
    write_tree(tmp_path, dict.fromkeys("abcd", 1))
    Image.new("RGB", (7, 5), (255, 0, 0)).save(tmp_path / "a" / "red.jpg", quality=95)
    Image.new("L", (4, 6), 9).save(tmp_path / "a" / "gray.PNG")
    color = image_folder_domain("d", tmp_path).train
    images = color.load([0, 1, 2])
    assert [tuple(image.shape) for image in images] == [(3, 4, 4), (3, 6, 4), (3, 5, 7)]
    assert images[1].unique().tolist() == [9]
    assert int(images[2][0].min()) > 250
    assert int(images[2][1].max()) < 6
    gray = image_folder_domain("d", tmp_path, grayscale=True).train
    assert [len(image) for image in gray.load([0, 1, 2])] == [1, 1, 1]
    assert isinstance(color, ImageFiles)
    alone = ImageFiles(color.files, color.labels, color.class_names, workers=1)
    assert all(torch.equal(x, y) for x, y in zip(alone.load([0, 1, 2]), images, strict=True))


def test_trees_named_train_valid_and_test_are_the_splits(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 1, "b": 2})
    write_tree(tmp_path / "val", {"c": 1})
    with pytest.raises(DataError, match=r"classes in 'train', but none in 'test'"):
        image_folder_domain("d", tmp_path)
    write_tree(tmp_path / "test", {"e": 1})
    domain = image_folder_domain("d", tmp_path)
    assert [domain.split(s).class_names for s in SPLITS] == [("a", "b"), ("c",), ("e",)]
    write_tree(tmp_path, {"extra": 1})
    assert counts_of(image_folder_domain("d", tmp_path)) == [2, 1, 1]
    write_tree(tmp_path / "test", {"a": 1})
    with pytest.raises(DataError, match=r"class 'a' of domain 'd' is in two of the splits"):
        image_folder_domain("d", tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_tree(tmp_path, {"bus": 1, "car": 1, "train": 1, "van": 1})
    assert image_folder_domain("d", tmp_path).train.class_names == ("bus", "train")


def test_the_first_images_by_name_of_the_largest_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 3, "b": 5, "c": 5, "d": 1, "e": 4, "f": 3})
    domain = image_folder_domain("d", tmp_path, images_per_class=2, largest=4)
    # e has 4 images, and of a and f, with 3 each, a is the first by name.
    assert [domain.split(s).class_names for s in SPLITS] == [("a", "c"), ("b",), ("e",)]
    assert isinstance(domain.train, ImageFiles)
    assert [file.name for file in domain.train.files] == ["0000.png", "0001.png"] * 2


def test_trees_that_cannot_be_a_domain(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        image_folder_domain("d", tmp_path / "nowhere")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match=r"the domain 'd' is empty: .*hollow holds no folder"):
        image_folder_domain("d", tmp_path / "hollow")
    write_tree(tmp_path / "bare", {"a": 1, "b": 0})
    with pytest.raises(DataError, match=r"class 'b' is empty"):
        image_folder_domain("d", tmp_path / "bare")
    write_tree(tmp_path / "few", {"a": 1, "b": 1, "c": 1})
    with pytest.raises(DataError, match=r"split 'test' of domain 'd' is empty"):
        image_folder_domain("d", tmp_path / "few")
    for option in ("images_per_class", "largest"):
        with pytest.raises(ConfigurationError, match=f"{option} is 0"):
            image_folder_domain("d", tmp_path / "few", **{option: 0})


# The five data sets.


@pytest.mark.parametrize(
    ("name", "classes", "counts"),
    [
        ("cub", 200, [100, 50, 50]),
        ("cars", 196, [98, 49, 49]),
        ("places", 365, [183, 91, 91]),
    ],
)
def test_published_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int, counts: list[int]
) -> None:
    names = [f"{number + 1:03}.kind" for number in range(classes)]
    write_tree(tmp_path / name, dict.fromkeys(names, 1))
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    domain = photo_domains([name])[name]
    assert counts_of(domain) == counts
    assert {s: list(domain.split(s).class_names) for s in SPLITS} == split_classes(names)
    # One class less would move half of the others to another split.
    (tmp_path / name / names[7] / "0000.png").unlink()
    (tmp_path / name / names[7]).rmdir()
    with pytest.raises(DataError, match=rf"'{name}' has {counts[0]}, {counts[1]} and {counts[2]}"):
        photo_domains([name])


def test_plantae_takes_200_classes_and_places_200_images(tmp_path: Path) -> None:
    plants = {f"plant {number:03}": 1 + (number % 2) for number in range(210)}
    # 105 classes have two images; the first 95 by name of the others complete them.
    expected = sorted(name for name, count in plants.items() if count == 2)
    expected += sorted(name for name, count in plants.items() if count == 1)[:95]
    plants["plant 001"] = 603
    write_tree(tmp_path / "plantae", plants)
    plantae = photo_domains(["plantae"], tmp_path)["plantae"]
    assert {s: list(plantae.split(s).class_names) for s in SPLITS} == split_classes(expected)
    assert max(int(plantae.split(s).labels.bincount().max()) for s in SPLITS) == 600

    places = dict.fromkeys((f"place {number:03}" for number in range(365)), 1)
    write_tree(tmp_path / "places", places | {"place 002": 203})
    train = photo_domains(["places"], tmp_path)["places"].train
    assert isinstance(train, ImageFiles)
    assert [file.name for file in train.files if file.parent.name == "place 002"] == [
        f"{number:04}.png" for number in range(200)
    ]


def test_mini_imagenet_is_split_as_by_ravi_and_larochelle(tmp_path: Path) -> None:
    assert (len(set(_MINI_VALID)), len(set(_MINI_TEST))) == (16, 20)
    assert not set(_MINI_VALID) & set(_MINI_TEST)
    others = [f"n000000{number:02}" for number in range(64)]
    write_tree(tmp_path / "miniimagenet", dict.fromkeys([*others, *_MINI_VALID, *_MINI_TEST], 1))
    domain = photo_domains(["miniimagenet"], tmp_path)["miniimagenet"]
    assert counts_of(domain) == [64, 16, 20]
    assert domain.train.class_names == tuple(others)
    assert domain.valid.class_names == tuple(sorted(_MINI_VALID))
    # Trees for each split, as they are often passed on.
    root = tmp_path / "apart" / "miniimagenet"
    for part, names in (("train", others), ("val", _MINI_VALID), ("test", _MINI_TEST)):
        write_tree(root / part, dict.fromkeys(names, 1))
    apart = photo_domains(["miniimagenet"], tmp_path / "apart")["miniimagenet"]
    assert [apart.split(s).class_names for s in SPLITS] == [
        domain.split(s).class_names for s in SPLITS
    ]


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("miniimagenet", "WordNet"),
        ("cub", "CUB_200_2011"),
        ("cars", "cars_train"),
        ("places", "places365"),
        ("plantae", "iNaturalist"),
    ],
)
def test_a_missing_data_set_says_where_it_is_and_how_to_lay_it_out(
    tmp_path: Path, name: str, origin: str
) -> None:
    with pytest.raises(DataError) as caught:
        photo_domains([name], tmp_path)
    message = str(caught.value)
    for part in (repr(name), str(tmp_path / name), origin, "one folder of images for each class"):
        assert part in message
    assert "METATOOLKIT_DATA" in message


def test_an_unknown_data_set() -> None:
    with pytest.raises(UnknownNameError, match=r"'place'.*Did you mean 'places'"):
        photo_domains(["place"])
    with pytest.raises(ConfigurationError, match="names is 'cub'"):
        photo_domains("cub")


# Their transform.


def test_evaluation_resizes_and_cuts_out_the_center() -> None:
    transform = PhotoTransform(20, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    image = torch.zeros(3, 46, 92, dtype=torch.uint8)
    image[0] = 255
    # After resizing to 23 by 23, this is the frame that the center leaves out.
    image[1, :3], image[1, -3:] = 255, 255
    result = transform([image, torch.zeros(3, 9, 9, dtype=torch.uint8)])
    assert result.shape == (2, 3, 20, 20)
    assert result[0, 0].unique().tolist() == [2.0]
    assert result[0, 1, 2:-2].unique().tolist() == [-2.0]
    assert result[1].unique().tolist() == [-2.0]


def test_augmentation_draws_from_its_generator_alone() -> None:
    transform = PhotoTransform(12, augment=True)
    images = torch.randint(0, 256, (4, 3, 30, 40), dtype=torch.uint8)
    state = torch.get_rng_state()

    def draw(seed: int) -> torch.Tensor:
        return transform(images, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(1).dtype == torch.float32
    same = images[:1].expand(4, -1, -1, -1)
    first, *rest = transform(same, torch.Generator().manual_seed(0))
    assert not any(torch.equal(first, other) for other in rest)


def test_augmentation_flips_half_of_the_images_and_jitters_by_up_to_40_percent() -> None:
    transform = PhotoTransform(2, augment=True, mean=(0, 0, 0), std=(1, 1, 1))
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 200
    crops = transform(image.expand(400, -1, -1, -1), torch.Generator().manual_seed(0))
    left, right = crops[:, :, :, 0].mean((1, 2)), crops[:, :, :, 1].mean((1, 2))
    flipped = left > right + 1e-3
    plain = right > left + 1e-3
    # Five standard deviations of a fair coin over these.
    told = int(flipped.sum() + plain.sum())
    assert told > 200
    assert abs(int(flipped.sum()) - told / 2) < 2.5 * told**0.5
    gray = torch.full((400, 3, 6, 6), 100, dtype=torch.uint8)
    levels = transform(gray, torch.Generator().manual_seed(1)).mean((1, 2, 3)) * 255
    # Contrast and saturation leave an even gray alone, but for rounding.
    assert 58 < levels.min() < 64
    assert 136 < levels.max() < 142


def test_transforms_that_cannot_be() -> None:
    for size in (0, True, 2.0):
        with pytest.raises(ConfigurationError, match=f"size is {size!r}"):
            PhotoTransform(size)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="std is"):
        PhotoTransform(4, std=(1, 0, 1))
    with pytest.raises(ShapeError, match=r"shape \(1, 5, 5\); \(3, height, width\)"):
        PhotoTransform(4)([torch.zeros(1, 5, 5)])
