from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    ShapeError,
    UnknownNameError,
)
from metatoolkit.tasks import Batches, Classification, Split, load_dataset
from metatoolkit.tasks.datasets import data_root


def write_image(path: Path, value: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), value, dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, value in (("cat", 10), ("dog", 200)):
        for number in range(10):
            write_image(tmp_path / name / f"{number:02}.png", value + number)
    return tmp_path


# Digits.


def test_digits_are_real_standardized_and_split_for_good() -> None:
    digits = load_dataset("digits")
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.input_shape == (1, 8, 8)
    assert digits.classes == 10
    pixels = digits.train_images.double()
    assert abs(pixels.mean()) < 1e-6
    assert abs(pixels.std(correction=0) - 1) < 1e-6
    raw = digits.test_images * digits.std[0] + digits.mean[0]
    torch.testing.assert_close((raw * 16).round() / 16, raw, atol=1e-5, rtol=0)
    assert raw.min() > -1e-6
    assert raw.max() < 1 + 1e-6
    torch.manual_seed(5)
    assert torch.equal(load_dataset("digits").test_images, digits.test_images)


def test_the_test_part_of_digits_is_stratified_and_disjoint() -> None:
    digits = load_dataset("digits")
    train, test = digits.train_labels.bincount(), digits.test_labels.bincount()
    assert ((test / (train + test) - 0.2).abs() < 0.005).all()
    seen = {image.numpy().tobytes() for image in digits.train_images}
    assert not any(image.numpy().tobytes() in seen for image in digits.test_images)
    assert len(load_dataset("digits", test_fraction=0.5).test_labels) == pytest.approx(898, abs=10)


# Any data set.


def test_unknown_names_and_options_out_of_range() -> None:
    with pytest.raises(UnknownNameError, match=r"'cifar01'.*Did you mean 'cifar10'"):
        load_dataset("cifar01")
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigurationError, match="test_fraction"):
            load_dataset("digits", test_fraction=fraction)
    with pytest.raises(ConfigurationError, match="image_size"):
        load_dataset("folder:x", image_size=0)


def test_data_sets_that_contradict_themselves_are_refused() -> None:
    digits = load_dataset("digits")
    with pytest.raises(ShapeError, match="359 test_images and 3 test_labels"):
        dataclasses.replace(digits, test_labels=digits.test_labels[:3])
    with pytest.raises(ShapeError, match="train_images of digits have shape"):
        dataclasses.replace(digits, train_images=digits.train_images.flatten(1))
    with pytest.raises(ShapeError, match="must be equal"):
        dataclasses.replace(digits, test_images=digits.test_images[:, :, :7])
    with pytest.raises(DataError, match="int32"):
        dataclasses.replace(digits, test_images=digits.test_images.int())
    with pytest.raises(DataError, match="int64 tensor is needed"):
        dataclasses.replace(digits, test_labels=digits.test_labels.int())
    images = digits.train_images.clone()
    images[7, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinity, first in image 7"):
        dataclasses.replace(digits, train_images=images)


def test_splits_unpack_into_batches() -> None:
    digits = load_dataset("digits")
    assert isinstance(digits.train, Split)
    images, labels = next(Batches(*digits.train, batch_size=8))
    assert images.shape == (8, 1, 8, 8)
    assert labels.shape == (8,)
    assert digits.test.labels is digits.test_labels


def test_the_package_imports_no_data_library() -> None:
    code = (
        "import sys, metatoolkit.tasks\n"
        "print([m for m in ('sklearn', 'torchvision', 'PIL', 'platformdirs') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_root_is_the_argument_then_the_variable_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    assert data_root(tmp_path / "x") == tmp_path / "x"
    assert data_root() == tmp_path
    monkeypatch.delenv("METATOOLKIT_DATA")
    assert data_root().name == "datasets"
    assert "metatoolkit" in data_root().parts


# Folders of images.


def test_a_tree_of_classes_is_split(tree: Path) -> None:
    data = load_dataset(f"folder:{tree}")
    assert data.class_names == ("cat", "dog")
    assert data.input_shape == (3, 6, 5)
    assert data.train_labels.bincount().tolist() == [8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2]
    assert data.train_images.dtype == torch.uint8
    assert data.train_images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert data.train_images[:, 1, 1, 1].tolist() == [
        *(10 + i for i in (0, 1, 2, 3, 5, 6, 7, 8)),
        *(200 + i for i in (0, 1, 2, 3, 5, 6, 7, 8)),
    ]


def test_normalization_constants_are_those_of_the_training_part(tree: Path) -> None:
    data = load_dataset(f"folder:{tree}")
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())
    normalized = data.transform()(data.train_images).double()
    assert normalized.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (normalized.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_given_parts_are_kept(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("parts")
    tree.rename(root / "train")
    write_image(root / "test" / "dog" / "deep" / "one.jpg", 33)
    write_image(root / "val" / "dog" / "one.png", 33)
    data = load_dataset(f"folder:{root}")
    assert data.train_labels.bincount().tolist() == [10, 10]
    assert data.test_labels.tolist() == [1]
    write_image(root / "test" / "fox" / "one.jpg", 33)
    with pytest.raises(DataError, match="class 'fox'"):
        load_dataset(f"folder:{root}")


def test_a_lonely_part_is_refused_and_a_class_may_be_called_train(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tree / "cat").rename(tree / "train")
    assert load_dataset(f"folder:{tree}").class_names == ("dog", "train")
    root = tmp_path_factory.mktemp("parts")
    tree.rename(root / "train")
    with pytest.raises(DataError, match=r"in 'train', but no other part"):
        load_dataset(f"folder:{root}")


def test_images_are_resized_and_made_gray(tree: Path) -> None:
    write_image(tree / "cat" / "large.png", 50, size=(30, 20))
    with pytest.raises(DataError, match=r"large\.png is 30×20.*6×5; pass image_size"):
        load_dataset(f"folder:{tree}")
    data = load_dataset(f"folder:{tree}", image_size=(4, 3), grayscale=True)
    assert data.input_shape == (1, 4, 3)
    assert len(data.mean) == 1
    assert load_dataset(f"folder:{tree}", image_size=7).input_shape == (3, 7, 7)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    for name, value in (("dark", 257 * 20), ("light", 257 * 130)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((4, 4), value, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load_dataset(f"folder:{tmp_path}", grayscale=True)
    assert data.train_images.unique().tolist() == [20, 130]


def test_a_channel_of_one_value_is_not_divided_by_zero(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "black" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.std == (1.0, 1.0, 1.0)


def test_errors_of_folders_name_the_place(tree: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_dataset(f"folder:{tree / 'nowhere'}")
    with pytest.raises(DataError, match="holds no folder"):
        load_dataset(f"folder:{tree / 'cat'}")
    (tree / "empty").mkdir()
    (tree / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="class 'empty' is empty"):
        load_dataset(f"folder:{tree}")


@pytest.mark.parametrize("content", [b"no image at all", b"", b"truncated"])
def test_a_corrupt_image_is_named(tree: Path, content: bytes) -> None:
    bad = tree / "dog" / "04.png"
    bad.write_bytes(bad.read_bytes()[:40] if content == b"truncated" else content)
    with pytest.raises(DataError, match=r"dog.04\.png cannot be read as an image"):
        load_dataset(f"folder:{tree}")


def test_a_class_with_one_image_cannot_be_split(tree: Path) -> None:
    write_image(tree / "fox" / "0.png", 3)
    with pytest.raises(DataError, match=r"class 'fox' has 1 image\(s\)"):
        load_dataset(f"folder:{tree}")


def test_hidden_files_and_folders_are_left_alone(tree: Path) -> None:
    write_image(tree / ".cache" / "0.png", 3)
    (tree / "cat" / "._00.png").write_bytes(b"junk")
    assert load_dataset(f"folder:{tree}").class_names == ("cat", "dog")


def test_the_data_set_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_dataset("digits").name = "other"  # type: ignore[misc]
    assert isinstance(load_dataset("digits"), Classification)
